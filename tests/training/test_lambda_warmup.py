"""The warm-up of lambda_init: from each layer's own start to a common target."""

import pytest
import torch

from diffvit_timm.errors import InputError
from diffvit_timm.training.lambda_warmup import LambdaWarmup, lambda_ramp


def lambda_inits(model):
    return [layer.lambda_init.item() for layer in model.differential_layers()]


def test_lambda_starts_where_it_is_and_stays_at_its_target():
    assert lambda_ramp(0, 0.05, 0.2, 10) == 0.05
    assert lambda_ramp(5, 0.05, 0.2, 10) == pytest.approx(0.125)
    assert lambda_ramp(10, 0.05, 0.2, 10) == pytest.approx(0.2)
    assert lambda_ramp(1000, 0.05, 0.2, 10) == pytest.approx(0.2)
    assert lambda_ramp(5, 0.8, 0.0, 10) == pytest.approx(0.4)
    assert lambda_ramp(1, 0.05, 0.2, 0.5) == pytest.approx(0.2)  # shorter than one update


def test_every_layer_moves_from_its_own_start_to_the_same_target(tiny_model):
    model = tiny_model(lambda_init="schedule", depth=3)
    starts = lambda_inits(model)
    assert len(set(starts)) == 3
    warmup = LambdaWarmup(model, target=0.1, updates=4)
    assert warmup.starts == lambda_inits(model) == starts
    for step, share in ((1, 0.25), (2, 0.5), (4, 1.0), (9, 1.0), (2, 0.5)):
        warmup.apply(step)
        assert lambda_inits(model) == pytest.approx([start + share * (0.1 - start) for start in starts])


def test_lambda_init_is_in_the_state_dict_before_the_first_update(tiny_model):
    model = tiny_model(lambda_init="schedule")  # a number would be in the state dict anyway
    starts = lambda_inits(model)
    names = {f"blocks.{block}.attn.lambda_init" for block in range(2)}
    assert not names & model.state_dict().keys()
    LambdaWarmup(model, target=0.1, updates=4)
    assert names <= model.state_dict().keys()
    assert [model.state_dict()[name].item() for name in sorted(names)] == starts


def test_version_2_is_refused_because_it_learns_lambda_per_token(tiny_model):
    with pytest.raises(InputError) as caught:
        LambdaWarmup(tiny_model(attn="diff_v2"), target=0.2, updates=4)
    assert str(caught.value) == "`lambda_warmup` needs `attn=diff`: version 2 learns lambda per token"


def test_a_plain_network_is_left_as_it_is_and_warned_about(tiny_model, capsys):
    model = tiny_model(attn="plain")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    LambdaWarmup(model, target=0.2, updates=4).apply(1)
    assert capsys.readouterr().err == "lambda_warmup has no effect: plain attention has no lambda\n"
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_differential_network_is_not_warned_about(tiny_model, capsys):
    LambdaWarmup(tiny_model(), target=0.2, updates=4)
    assert capsys.readouterr().err == ""
