"""Many trainings in one folder: what every study refuses, whatever it varies."""

import pytest

from diffvit_timm.errors import InputError
from diffvit_timm.studies.ablation import AblationConfig
from diffvit_timm.studies.runs import SCRATCH
from diffvit_timm.studies.scaling import ScalingConfig


def ablation_of(study, output):
    return AblationConfig(SCRATCH.replace(output=str(output)), study=(study,))


def test_a_study_with_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="a study runs in one process"):
        AblationConfig()


def test_a_study_does_not_write_over_another_one(tmp_path):
    training = tmp_path / "noise" / "20-wrong-labels-diff-0"
    training.mkdir(parents=True)
    (training / "config.yaml").touch()
    ablation_of("noise", tmp_path)
    ablation_of("depth", tmp_path)  # another study may use the same folder
    message = "contains 20-wrong-labels-diff-0, which is not a training of this study: choose another folder"
    (tmp_path / "noise").rename(tmp_path / "depth")
    with pytest.raises(InputError, match=message):
        ablation_of("depth", tmp_path)
    with pytest.raises(InputError, match=message):
        ScalingConfig(SCRATCH.replace(output=str(tmp_path / "depth")))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "scaling.json").write_text("mine")
    own = SCRATCH.replace(output=str(tmp_path / "own"))
    for study in (AblationConfig, ScalingConfig):
        with pytest.raises(InputError, match="own` is not empty"):
            study(own)
