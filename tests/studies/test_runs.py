"""Many trainings in one folder: what every study refuses, whatever it varies."""

import pytest

from diffvit_timm.errors import InputError
from diffvit_timm.studies.ablation import AblationConfig
from diffvit_timm.studies.runs import SCRATCH
from diffvit_timm.studies.scaling import ScalingConfig


def ablation_of(study, output):
    return AblationConfig(SCRATCH.replace(output=str(output)), study=study)


def test_a_study_with_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="a study runs in one process"):
        AblationConfig()


def test_a_study_does_not_write_over_another_one(tmp_path):
    (tmp_path / "20-wrong-labels-diff-0").mkdir()
    (tmp_path / "20-wrong-labels-diff-0" / "config.yaml").touch()
    ablation_of("noise", tmp_path)
    message = "contains 20-wrong-labels-diff-0, which is not a training of this study: choose another folder"
    with pytest.raises(InputError, match=message):
        ablation_of("size", tmp_path)
    with pytest.raises(InputError, match=message):
        ScalingConfig(SCRATCH.replace(output=str(tmp_path)))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "scaling.json").write_text("mine")
    own = SCRATCH.replace(output=str(tmp_path / "own"))
    for study in (AblationConfig, ScalingConfig):
        with pytest.raises(InputError, match="own` is not empty"):
            study(own)
