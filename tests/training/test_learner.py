"""One model and everything that an update changes: optimizer, schedules, averaged weights."""

import pytest
import torch
from accelerate import Accelerator

from diffvit_timm.errors import InputError
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.learner import Learner
from diffvit_timm.training.objective import SingleLabel

OPTIONS = dict(batch_size=6, lr=1e-2, layer_decay=0.5, warmup_epochs=0.5, mixup=0.4, cutmix=0.5)


@pytest.fixture
def learner(tiny_model):
    """Function: arguments of the model, options -> a Learner of 4 updates in 2 epochs."""

    def make(shape=None, **options):
        config = TrainConfig.from_flat("data", "tiny", **{**OPTIONS, **options})
        model = tiny_model(**{"drop_path_rate": 0.3, **(shape or {})})
        return Learner(config, Accelerator(cpu=True), model, objective=SingleLabel(3), updates_per_epoch=2, updates=4)

    return make


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 3, 16, 16, generator=generator), torch.randint(3, (6,), generator=generator)


def after(learner, steps):
    """Weights after these updates, and the losses."""
    learner.set_training_mode()
    losses = [learner.update(*batch(step), step).item() for step in steps]
    return learner.state_dict()[0], losses


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema": 0.6},
        {"ema": 0.6, "lambda_warmup": 1.0},
        {"opt": "nmuon"},
        {"query_lr_scale": 10.0, "lambda_lr_scale": 10.0},
    ],
    ids=str,
)
def test_a_state_that_is_saved_and_loaded_goes_on_to_the_same_bits(learner, tmp_path, options):
    shape = {"lambda_init": "schedule"}
    if "query_lr_scale" in options:
        shape = {"attn": "diff_v2"}
    expected, losses = after(learner(shape, **options), range(4))
    first = learner(shape, **options)
    _, losses_before = after(first, range(2))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = learner(shape, **options)
    second.load_state_dict(*torch.load(tmp_path / "state.pt", weights_only=True))
    weights, losses_after = after(second, range(2, 4))
    assert_equal(weights, expected)
    assert losses_before + losses_after == losses
    assert second.last_lr > 0
    assert any(name.startswith("ema.") for name in weights) == ("ema" in options)


def test_the_draws_of_an_update_depend_on_the_seed_and_the_update_only(learner):
    torch.manual_seed(1)
    expected, losses = after(learner(), [2])
    torch.manual_seed(2)
    weights, same = after(learner(), [2])
    assert_equal(weights, expected)
    assert same == losses
    for other in (after(learner(seed=1), [2])[1], [learner().update(*batch(2), 3).item()]):
        assert other != losses


def test_the_network_that_is_evaluated_is_the_average_if_there_is_one(learner):
    run = learner()
    assert run.eval_model is run.net
    averaged = learner(ema=0.6)
    assert averaged.eval_model is averaged.ema.module
    after(averaged, range(3))
    state = averaged.state_dict()[0]
    assert torch.equal(state["ema.head.weight"], averaged.eval_model.head.weight)
    assert not torch.equal(state["ema.head.weight"], state["head.weight"])


def test_weights_to_evaluate_are_loaded_into_the_network_that_is_evaluated(learner, tiny_model):
    other = tiny_model()
    torch.nn.init.normal_(other.head.weight)
    run = learner(ema=0.6)
    before = run.net.head.weight.clone()
    run.load_eval_weights(other.state_dict())
    assert torch.equal(run.eval_model.head.weight, other.head.weight)
    assert torch.equal(run.net.head.weight, before)


def test_the_average_has_lambda_init_before_the_first_update(learner):
    run = learner({"lambda_init": "schedule"}, ema=0.6, lambda_warmup=1.0)
    names = {name for name in run.state_dict()[0] if name.endswith("lambda_init")}
    assert names == {f"{prefix}blocks.{block}.attn.lambda_init" for prefix in ("", "ema.") for block in range(2)}


def test_a_warm_up_of_lambda_is_set_before_the_forward_pass_of_its_update(learner):
    run = learner(lambda_warmup=1.0, lambda_target=0.25)  # 2 updates per epoch
    seen = []
    run.model.register_forward_pre_hook(lambda *_: seen.append(run.net.blocks[0].attn.lambda_init.item()))
    after(run, range(4))
    assert seen == pytest.approx([0.15, 0.25, 0.25, 0.25])


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_the_last_learning_rate_is_that_of_the_head_in_the_last_update(learner, scale):
    run = learner(lambda_lr_scale=scale)
    after(run, [0])
    assert run.last_lr == pytest.approx(1e-2 / 2)  # the first update of a warm-up of one update
    after(run, [1])
    assert run.last_lr == pytest.approx(1e-2)


def test_training_mode_leaves_out_what_is_frozen(learner, tiny_model):
    model = tiny_model()
    model.blocks[0].requires_grad_(False)
    config = TrainConfig.from_flat("data", "tiny", **OPTIONS)
    run = Learner(config, Accelerator(cpu=True), model, objective=SingleLabel(3), updates_per_epoch=2, updates=4)
    run.model.eval()
    run.set_training_mode()
    assert [block.training for block in run.net.blocks] == [False, True]
    assert run.net.head.training
    before = {name: tensor.clone() for name, tensor in model.blocks[0].state_dict().items()}
    after(run, range(2))
    assert_equal(model.blocks[0].state_dict(), before)


def test_on_a_cpu_the_accumulation_steps_are_those_that_were_asked_for(learner):
    run = learner(grad_accum=3)
    run.fit_memory()
    assert run.accum_steps == 3


def test_a_sharded_model_refuses_a_rate_of_its_own_for_a_part_of_a_weight(learner, monkeypatch):
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    message = "`query_lr_scale=2.0` does not work with a sharded model: leave it out"
    with pytest.raises(InputError, match=message):
        learner({"attn": "diff_v2"}, query_lr_scale=2.0)
