"""The optimizer's groups and the schedules, against plain formulas and torch's own."""

import math

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock

from diffvit_timm import from_vit
from diffvit_timm.layers.adapters.projections import output_projection
from diffvit_timm.layers.base import Version2
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.optim import build_optimizer, build_scheduler, warmup_cosine, warmup_updates


def config(**kwargs):
    return TrainConfig.from_flat("data", "tiny", **kwargs).optim


def settings(model, optimizer):
    """Return the parameter group of each parameter by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("attn", ["diff", "plain"])
def test_the_learning_rate_falls_by_the_decay_from_the_head_to_the_stem(tiny_model, attn):
    model = tiny_model(depth=3, attn=attn)
    groups = settings(model, build_optimizer(model, config(lr=1e-3, layer_decay=0.5)))
    levels = {"stem": set(), "blocks.0": set(), "blocks.1": set(), "blocks.2": set(), "head": set()}
    for name, group in groups.items():
        levels[name[:8] if name.startswith("blocks") else "head" if name.startswith("head") else "stem"].add(
            round(group["lr"] / 1e-3, 9)
        ) if not name.startswith("norm") else None
    assert levels == {"stem": {0.5**4}, "blocks.0": {0.5**3}, "blocks.1": {0.5**2}, "blocks.2": {0.5}, "head": {1.0}}


def test_every_parameter_is_trained_once(tiny_model):
    model = tiny_model()
    optimizer = build_optimizer(model, config())
    trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters())


def test_without_layer_decay_all_learn_at_the_same_rate(tiny_model):
    model = tiny_model()
    optimizer = build_optimizer(model, config(lr=1e-3, layer_decay=1.0))
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_layer_decay_reaches_the_weights_and_not_only_the_groups(tiny_model):
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, config(lr=1e-3, layer_decay=0.1, weight_decay=0.0))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # AdamW's first step is the learning rate, whatever the gradient
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in model.named_parameters()}
    for name, rate in (("patch_embed.proj.bias", 1e-6), ("blocks.0.mlp.fc1.bias", 1e-5), ("head.bias", 1e-3)):
        assert moved[name] == pytest.approx(rate, rel=1e-2), name


@pytest.mark.parametrize("attn", ["diff", "plain"])
def test_only_matrices_are_decayed(tiny_model, attn):
    model = tiny_model(attn=attn)
    groups = settings(model, build_optimizer(model, config(weight_decay=0.07)))
    for name, parameter in model.named_parameters():
        token = name in ("cls_token", "pos_embed")
        expected = 0.0 if token or parameter.ndim < 2 else 0.07
        assert groups[name]["weight_decay"] == expected, name
    if attn == "diff":
        assert groups["blocks.0.attn.lambda_q1"]["weight_decay"] == 0.0
    assert groups["blocks.0.attn.qkv.weight"]["weight_decay"] == 0.07


@pytest.mark.parametrize(("warmup", "total"), [(0, 20), (5, 20), (1, 7)])
def test_the_learning_rate_is_torchs_linear_warm_up_and_then_its_cosine(warmup, total):
    def torchs(scheduler_of):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
        scheduler = scheduler_of(optimizer)
        rates = []
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return rates

    linear = torchs(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1 / (warmup + 1), 1.0, warmup)) if warmup else []
    cosine = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total - warmup))
    expected = linear[:warmup] + cosine[: total - warmup]
    assert [warmup_cosine(step, warmup, total) for step in range(total)] == pytest.approx(expected)


def test_no_update_is_lost_to_a_rate_of_zero_and_the_schedule_ends_at_zero():
    assert min(warmup_cosine(step, 4, 12) for step in range(12)) > 0
    assert warmup_cosine(4, 4, 12) == 1
    assert warmup_cosine(8, 4, 12) == pytest.approx(0.5)
    assert warmup_cosine(12, 4, 12) == pytest.approx(0)
    assert warmup_cosine(3, 3, 3) == 1  # nothing but warm-up


def test_the_scheduler_counts_updates_and_keeps_the_ratio_of_the_groups(tiny_model):
    cfg = config(epochs=2, warmup_epochs=0.5, lr=1e-3, layer_decay=0.5)
    optimizer = build_optimizer(tiny_model(), cfg)
    peaks = [group["lr"] for group in optimizer.param_groups]
    scheduler = build_scheduler(optimizer, cfg, updates_per_epoch=4, total=8)
    for step in range(9):
        factor = (step + 1) / 3 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 6))
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([peak * factor for peak in peaks], abs=1e-12), step
        optimizer.step()
        scheduler.step()


def test_a_warm_up_longer_than_the_training_still_ends_within_it(tiny_model):
    cfg = config(epochs=1, warmup_epochs=10.0, lr=1e-3, layer_decay=1.0)
    optimizer = build_optimizer(tiny_model(), cfg)
    scheduler = build_scheduler(optimizer, cfg, updates_per_epoch=3, total=3)
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3])
    assert warmup_updates(cfg, updates_per_epoch=3, total=3) == 3
    assert warmup_updates(config(warmup_epochs=0.5), updates_per_epoch=3, total=3) == 2
    assert warmup_updates(config(warmup_steps=500), updates_per_epoch=3, total=3) == 3


def test_a_warm_up_in_updates_replaces_that_in_epochs():
    assert warmup_updates(config(warmup_epochs=5.0, warmup_steps=7), updates_per_epoch=10, total=100) == 7


def test_muon_takes_the_matrices_between_two_layers_and_no_others(tiny_model):
    model = tiny_model()
    groups = settings(model, build_optimizer(model, config(opt="nmuon", lr=1e-2, layer_decay=1.0)))
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and name.split(".")[0] in ("blocks", "patch_embed")
        assert matrix == (parameter.ndim > 1 and not groups[name].get("use_fallback", False)), name


def test_a_step_of_muon_turns_a_matrix_by_an_orthogonal_one(tiny_model):
    model = tiny_model()
    weight = model.blocks[0].attn.proj.weight
    before = weight.detach().double()
    optimizer = build_optimizer(model, config(opt="nmuon", lr=1e-2, layer_decay=1.0, weight_decay=0.0))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    step = (weight.detach().double() - before) / (0.2 * 1e-2 * max(weight.shape) ** 0.5)  # as large as AdamW's
    assert torch.linalg.svdvals(step) == pytest.approx(1, abs=0.4)  # Newton and Schulz stop well before convergence


@pytest.mark.parametrize("attn", ["diff", "diff_v2"])
@pytest.mark.parametrize("opt", ["adamw", "nmuon"])
def test_lambda_learns_at_a_rate_of_its_own_on_top_of_the_layer_decay(tiny_model, attn, opt):
    model = tiny_model(attn=attn)
    options = dict(opt=opt, lr=1e-3, layer_decay=0.5)
    usual = settings(model, build_optimizer(model, config(**options)))
    scaled = settings(model, build_optimizer(model, config(**options, lambda_lr_scale=20.0)))
    assert scaled.keys() == usual.keys() == dict(model.named_parameters()).keys()
    names = {name for name in scaled if ".lambda_" in name}
    assert len(names) == (8 if attn == "diff" else 2)
    for name, group in scaled.items():
        expected = {**usual[name], "lr": usual[name]["lr"] * (20 if name in names else 1)}
        own = ("params", "is_lambda")
        assert {k: v for k, v in group.items() if k not in own} == {k: v for k, v in expected.items() if k not in own}


def stepped(make, **options):
    """Names, and how far each parameter moved in the first step of an optimizer, with the same random gradients."""
    model = make()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, config(lr=1e-3, weight_decay=0.1, **options))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


@pytest.mark.parametrize("opt", ["adamw", "nmuon"])
def test_the_steps_of_the_second_queries_are_multiplied_and_no_others(tiny_model, opt):
    make = lambda: tiny_model(attn="diff_v2")  # noqa: E731
    usual, scaled = stepped(make, opt=opt), stepped(make, opt=opt, query_lr_scale=10.0)
    for name, step in usual.items():
        factor = torch.ones(len(step) if step.ndim else 1)
        if ".qkv." in name:
            factor[:64].view(2, 2, 16)[:, 1] = 10  # 2 heads of width 16 with two queries each
        factor = factor.view(-1, *[1] * (step.ndim - 1))
        torch.testing.assert_close(scaled[name], step * factor, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("eva02_tiny_patch14_224", dict(depth=1)),  # queries, keys and values with separate weights or biases
        ("vit_small_patch16_rope_224", dict(depth=1, qkv_fused=False, attn_type="rope", num_kv_heads=1)),
        ("vit_tiny_patch16_224", dict(depth=1, block_fn=ParallelScalingBlock)),  # the rows of an MLP come first
        ("swin_tiny_patch4_window7_224", dict(depths=(1, 1), num_heads=(2, 2))),
    ],
)
def test_the_second_queries_are_found_in_every_form_of_projection(name, shape):
    torch.manual_seed(0)
    plain = timm.create_model(name, embed_dim=32, num_classes=3, **({"num_heads": 2} | shape))
    make = lambda: from_vit(plain, attn="diff_v2")  # noqa: E731
    usual, scaled = stepped(make), stepped(make, query_lr_scale=10.0)
    size = lambda step: step.abs().reshape(len(step), -1).mean(1)  # noqa: E731  one number per row
    faster = {key: size(scaled[key]) > 5 * size(step) for key, step in usual.items() if step.ndim}
    faster = {key: rows for key, rows in faster.items() if rows.any()}
    layers = {key: layer for key, layer in make().named_modules() if isinstance(layer, Version2)}
    assert {key.rpartition(".attn.")[0] or "blocks.0" for key in faster} == {k.removesuffix(".attn") for k in layers}
    for key, rows in faster.items():
        layer = next(layer for name, layer in layers.items() if key.startswith(name))
        width = output_projection(layer).in_features
        queries = rows[layer.in_split[0] :] if hasattr(layer, "in_split") else rows
        first, second = queries[: 2 * width].view(layer.num_heads, 2, -1).unbind(1)
        assert second.all()
        assert not first.any()
        assert rows.sum() == width


def test_frozen_queries_do_not_move(tiny_model):
    def make():
        model = tiny_model(attn="diff_v2")
        model.blocks[0].requires_grad_(False)
        return model

    moved = stepped(make, query_lr_scale=10.0)
    assert moved["blocks.0.attn.qkv.weight"].abs().max() == 0
    assert moved["blocks.1.attn.qkv.weight"].abs().max() > 0


@pytest.mark.parametrize(
    ("attn", "name", "message"),
    [
        ("plain", "lambda_lr_scale", "lambda_lr_scale has no effect: plain attention has no lambda\n"),
        ("plain", "query_lr_scale", "query_lr_scale has no effect: no layer of version 2 is trained\n"),
        ("diff", "query_lr_scale", "query_lr_scale has no effect: no layer of version 2 is trained\n"),
    ],
)
def test_a_rate_without_effect_is_announced(tiny_model, capsys, attn, name, message):
    build_optimizer(tiny_model(attn=attn), config(**{name: 3.0}))
    assert capsys.readouterr().err == message
