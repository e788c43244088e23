"""Ablations: the settings of every study, the trainings that they plan, and the comparison with the plain twin."""

from pathlib import Path

import pytest

from diffvit_timm.errors import InputError
from diffvit_timm.models.pretrained import build_model_on_meta
from diffvit_timm.studies.ablation import STUDIES, AblationConfig, Study, differences, plan_ablation, widened_mlp
from diffvit_timm.studies.results import Run
from diffvit_timm.studies.runs import SCRATCH


def ablation_of(study, **options):
    """The configuration of an ablation with one seed, from scratch."""
    return AblationConfig(SCRATCH.replace(**options), 1, (study,))


def test_every_study_has_settings_that_parse():
    assert set(STUDIES) == set(Study.__args__)
    for name in STUDIES:
        runs = plan_ablation(ablation_of(name), name)
        folders = [config.run.output for _, config in runs]
        assert len(set(folders)) == len(folders), name


def test_a_study_of_version_2_is_compared_with_plain_attention_too():
    runs = plan_ablation(ablation_of("noise", attn="diff_v2", output="~/runs"), "noise")
    assert [config.model.attn for _, config in runs] == ["diff_v2", "plain"] * 5
    assert len({config.run.output for _, config in runs}) == len(runs)
    assert all(Path(config.run.output).parent == Path.home() / "runs" / "noise" for _, config in runs)


def test_all_settings_of_a_seed_come_before_the_next_seed_and_trainings_continue():
    plan = plan_ablation(AblationConfig(SCRATCH.replace(model_kwargs=("depth=2",)), 2, ("pos_embed",)), "pos_embed")
    assert [config.run.seed for _, config in plan] == [0] * 8 + [1] * 8
    assert {config.run.resume for _, config in plan} == {"auto"}
    name, first = plan[0]
    assert (name, first.model.model_kwargs) == ("none", ("depth=2", "pos_embed=none"))
    assert first.run.output == "runs/ablation/pos_embed/none-model-0"


@pytest.mark.parametrize("ratio", [None, 4])
def test_the_widened_plain_network_has_as_many_parameters_as_version_2(ratio):
    given = (f"mlp_ratio={ratio}",) if ratio else ()
    model = SCRATCH.replace(model_kwargs=given).model
    assert widened_mlp(model) == (ratio or 2) + 0.5
    plan = dict(plan_ablation(ablation_of("attention", model_kwargs=given), "attention"))
    counts = {
        name: sum(p.numel() for p in build_model_on_meta(
            config.model.model, attn=config.model.attn.replace("model", "diff"), **config.model.keyword_arguments
        ).parameters()) for name, config in plan.items()
    }  # fmt: skip
    assert counts["plain, widened"] == pytest.approx(counts["version 2"], rel=0.01)
    assert counts["plain"] == pytest.approx(counts["the paper's"], rel=0.01)


def test_several_studies_have_a_folder_each_and_none_is_named_twice(tmp_path):
    config = AblationConfig(SCRATCH.replace(output=str(tmp_path)), 1, ("heads", "width"))
    places = {Path(c.run.output).parent for study in config.study for _, c in plan_ablation(config, study)}
    assert places == {tmp_path / "heads", tmp_path / "width"}
    with pytest.raises(InputError, match="`study=heads heads`: give one or more studies, each once"):
        AblationConfig(study=("heads", "heads"))


def test_patches_that_do_not_divide_the_image_are_refused():
    with pytest.raises(InputError, match="8 x 8 pixels do not divide the 28 pixels of `model=diffvit_nano`"):
        ablation_of("patch_size", model="diffvit_nano")
    with pytest.raises(InputError, match="`model=diffvit_foo` is not"):
        ablation_of("patch_size", model="diffvit_foo")
    with pytest.raises(InputError, match="4 x 4 pixels do not divide the 30 pixels of"):
        ablation_of("patch_size", model="diffvit_nano", img_size=(30, 32))
    with pytest.raises(InputError, match=r"`img_size=32 32 32` must be one positive number"):
        ablation_of("patch_size", model="diffvit_nano", img_size=(32, 32, 32))
    ablation_of("patch_size", model="diffvit_nano", img_size=(32, 32))
    ablation_of("patch_size", model="diffvit_nano", img_size=(32,))


def test_a_setting_is_compared_with_its_plain_twin_in_pairs_of_equal_seeds():
    runs = [Run("none", "diff", 0, 0.7, 10, 1.0), Run("none", "diff", 1, 0.9, 10, 1.0)]
    runs += [Run("none", "plain", 1, 0.8, 10, 1.0), Run("learn", "diff", 0, 0.7, 10, 1.0)]
    found = differences("pos_embed", runs)
    assert found == {"none": (pytest.approx(0.1), None, 1), "learn": None, "learn_2d": None, "sincos": None}


def test_a_kind_of_attention_is_compared_with_the_baseline_of_its_study():
    runs = [Run("plain", "plain", 0, 0.6, 10, 1.0), Run("version 2", "diff_v2", 0, 0.5, 10, 1.0)]
    found = differences("attention", runs)
    assert found["version 2"] == (pytest.approx(-0.1), None, 1)
    assert set(found) == {"plain, widened", "the paper's", "without head norm", "version 2"}
