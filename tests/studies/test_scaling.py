"""Scaling: the sizes, the trainings that they plan, and what is fitted to their results."""

import pytest

from diffvit_timm.errors import InputError
from diffvit_timm.studies.power_law import Point
from diffvit_timm.studies.runs import SCRATCH
from diffvit_timm.studies.scaling import ScalingConfig, fit_points, plan_scaling


def test_a_model_beside_sizes_that_are_models_is_refused():
    nano = SCRATCH.replace(model="diffvit_nano")
    with pytest.raises(InputError, match="`model=diffvit_nano` has no effect if all `sizes` are models"):
        ScalingConfig(nano, sizes=("diffvit_micro_patch8_32",))
    ScalingConfig(nano, sizes=("diffvit_micro_patch8_32", "32x1"))


def test_a_size_is_a_width_and_a_depth_or_a_model():
    options = SCRATCH.replace(model_kwargs=("head_norm=false",), output="here")
    plan = plan_scaling(ScalingConfig(options, 2, ("64x3", "diffvit_nano")))
    assert [(size, config.model.attn, config.run.seed) for size, config in plan] == [
        (size, attn, seed) for seed in (0, 1) for size in ("64x3", "diffvit_nano") for attn in ("model", "plain")
    ]
    shape, model = plan[0][1], plan[2][1]
    assert shape.model.model == "diffvit_micro_patch4_32"
    assert shape.model.model_kwargs == ("head_norm=false", "embed_dim=64", "depth=3", "num_heads=2")
    assert (model.model.model, model.model.model_kwargs) == ("diffvit_nano", ("head_norm=false",))
    assert (shape.run.output, shape.run.resume) == ("here/64x3-model-0", "auto")


def points(sizes):
    """Two seeds per size on the law 10 N^-0.2 for plain attention, and 1.1 times that for differential attention."""
    return [
        Point(str(n), attn, seed, n, 100 * n, factor * 10 * n**-0.2, 0.5)
        for n in sizes
        for attn, factor in (("diff", 1.1), ("plain", 1.0))
        for seed in (0, 1)
    ]


def test_each_attention_has_a_law_per_axis_and_is_compared_with_plain_attention():
    found = fit_points(points((1_000, 2_000, 4_000, 8_000)))
    assert {attn: list(laws) for attn, laws in found["laws"].items()} == {
        "diff": ["parameters", "flops"],
        "plain": ["parameters", "flops"],
    }
    assert found["laws"]["diff"]["parameters"]["exponent"] == pytest.approx(0.2)
    assert {attn: list(ratios) for attn, ratios in found["over_plain"].items()} == {"diff": ["parameters", "flops"]}
    assert found["over_plain"]["diff"]["flops"]["ratio"] == pytest.approx(1.1)


def test_too_few_sizes_have_no_law():
    assert fit_points(points((1_000, 2_000, 4_000))) == {"laws": {}, "over_plain": {}}
