"""Every optimizer of timm that is not refused trains, with all our learning rates, and continues from a checkpoint."""

import pytest
import torch
from timm.optim import list_optimizers

from diffvit_timm.errors import InputError
from diffvit_timm.training.optim import build_optimizer, build_scheduler
from diffvit_timm.training.optim_config import OptimConfig
from diffvit_timm.training.optimizers import REFUSED, check_optimizer
from diffvit_timm.training.sharding import full_optimizer_state, full_weights, load_optimizer_state, load_weights

USABLE = [name for name in list_optimizers() if not any(part in name for part in REFUSED)]


def trained(make_model, opt, updates, state=None):
    """Take some updates with random gradients, from the start or from a state; returns the model and its state."""
    config = OptimConfig(opt=opt, lr=1e-3, layer_decay=0.5, lambda_lr_scale=2.0, query_lr_scale=3.0)
    model = make_model(attn="diff_v2", depth=1)
    optimizer = build_optimizer(model, config)
    scheduler = build_scheduler(optimizer, config, updates_per_epoch=4, total=8)
    if state:
        load_weights(model, state["weights"])
        load_optimizer_state(model, optimizer, state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
    for update in updates:
        generator = torch.Generator().manual_seed(update)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        scheduler.step()
    return {
        "weights": full_weights(model),
        "optimizer": full_optimizer_state(model, optimizer),
        "scheduler": scheduler.state_dict(),
    }


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")  # timm's AdaBelief
@pytest.mark.parametrize("opt", USABLE)
def test_an_optimizer_moves_all_weights_and_continues_from_a_checkpoint_to_the_same_bits(tiny_model, tmp_path, opt):
    OptimConfig(opt=opt)
    torch.save(trained(tiny_model, opt, range(2)), tmp_path / "state.pt")
    resumed = trained(tiny_model, opt, range(2, 4), torch.load(tmp_path / "state.pt", weights_only=True))["weights"]
    start = tiny_model(attn="diff_v2", depth=1).state_dict()
    for name, tensor in trained(tiny_model, opt, range(4))["weights"].items():
        assert torch.equal(resumed[name], tensor), name
        assert torch.isfinite(tensor).all(), name
        assert not torch.equal(start[name], tensor) or name.endswith("lambda_init"), name


def test_most_optimizers_of_timm_can_be_used():
    assert {"adamw", "lion", "lamb", "sgd", "nadamw", "muon", "nmuon", "adopt", "mars", "adan"} <= set(USABLE)
    assert len(USABLE) > 60


@pytest.mark.parametrize(("opt", "momentum"), [("sgd", 0.9), ("lars", 0.9), ("rmsproptf", 0.9), ("nmuon", 0.95)])
def test_the_momentum_is_timms_or_that_of_muon(tiny_model, opt, momentum):
    optimizer = build_optimizer(tiny_model(), OptimConfig(opt=opt))
    assert {group["momentum"] for group in optimizer.param_groups} == {momentum}


@pytest.mark.parametrize("part", REFUSED)
def test_an_optimizer_that_cannot_be_used_is_refused_with_the_reason(part):
    names = [name for name in list_optimizers() if part in name] or ["lookahead_adamw"]
    for name in names:
        with pytest.raises(InputError, match=f"^`opt={name}` {REFUSED[part]}: choose another optimizer"):
            check_optimizer(name)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("lino", "did you mean lion or"),
        ("AdamW", "did you mean adamw or"),
        ("adam_w", "did you mean adamw or"),
        ("newton", "timm.optim.list_optimizers"),
    ],
)
def test_an_unknown_optimizer_is_one_error_with_names_that_are_near(name, advice):
    with pytest.raises(InputError) as caught:
        OptimConfig(opt=name)
    assert str(caught.value).startswith(f"`opt={name}` is not an optimizer of timm: {advice}")
    assert str(caught.value).endswith("timm.optim.list_optimizers() lists all names")
