"""The registered models behave like any other timm ViT."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, save_for_hf
from timm.models._features_fx import create_feature_extractor
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import reparameterize_model
from torch import nn

import diffvit_timm
from diffvit_timm.layers.attention import lambda_init_schedule
from diffvit_timm.models.diffvit import FROM_SCRATCH, SOURCES, checkpoint_filter_fn

NAMES = timm.list_models("diffvit*", module="diffvit")
CONVERTED = [name for name in NAMES if name not in FROM_SCRATCH]

# Every variant keeps its norms and extras but is made small, because the tests do not depend on the size.
SMALL = dict(img_size=32, patch_size=16, in_chans=3, embed_dim=64, depth=3, num_heads=2)


def small(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, "num_classes": 5, **kwargs})


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def test_the_variants_are_registered_with_tags():
    for size in ("tiny", "small", "base", "large"):
        assert f"diffvit_{size}_patch16" in NAMES
    assert "diffvit_base_patch32" in NAMES
    assert {tag for tag in timm.list_pretrained("diffvit*") if tag.split(".")[0] in NAMES} == set(SOURCES)


@pytest.mark.parametrize("tag", SOURCES)
def test_a_tag_has_the_data_settings_and_the_hub_repository_of_its_source(tag):
    ours, theirs = get_pretrained_cfg(tag), get_pretrained_cfg(SOURCES[tag])
    for name in ("mean", "std", "crop_pct", "interpolation", "input_size", "num_classes", "first_conv", "classifier"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.hf_hub_id == theirs.hf_hub_id
    assert ours.hf_hub_id.startswith("timm/")
    assert not ours.url  # the tensors of the original file have other names
    assert not ours.custom_load


@pytest.mark.parametrize("name", CONVERTED)
def test_the_plain_twin_has_the_tensors_of_timms_source_model(name):
    source = SOURCES[next(tag for tag in SOURCES if tag.split(".")[0] == name)].split(".")[0]
    with torch.device("meta"):
        ours = timm.create_model(name, attn="plain").state_dict()
        theirs = timm.create_model(source).state_dict()
    for key in ("head.weight", "head.bias"):
        ours.pop(key, None), theirs.pop(key, None)
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("name", CONVERTED)
def test_the_real_sizes_have_the_parameters_of_their_plain_twins_plus_lambda(name):
    with torch.device("meta"):
        diff, plain = timm.create_model(name), timm.create_model(name, attn="plain")
    layers, dim = diff.differential_layers(), diff.embed_dim
    v2 = name.startswith("diffvit2")
    # version 2 adds the second queries with their bias, and the projection of lambda
    extra = dim * (dim + 1) + dim * layers[0].num_heads if v2 else 4 * (layers[0].head_dim // 2)
    count = {model: sum(p.numel() for p in model.parameters()) for model in (diff, plain)}
    assert count[diff] == count[plain] + extra * len(layers)
    assert layers[0].branch_dims == (None if v2 else (48, 16))


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_variants_without_checkpoints_have_halves_the_papers_schedule_and_a_plain_twin(name):
    with torch.device("meta"):
        diff, plain, second = (timm.create_model(name, attn=attn) for attn in ("diff", "plain", "diff_v2"))
    for depth, layer in enumerate(diff.differential_layers()):
        assert layer.branch_dims == (layer.head_dim // 2, layer.head_dim // 2)
        assert not layer.head_norm
        assert layer._lambda_start == lambda_init_schedule(depth)
    assert diff.num_classes == plain.num_classes == second.num_classes == 10
    assert diff.pretrained_cfg["input_size"] == FROM_SCRATCH[name]
    assert diff.patch_embed.img_size == FROM_SCRATCH[name][1:]
    assert diff.patch_embed.proj.in_channels == len(diff.pretrained_cfg["mean"]) == FROM_SCRATCH[name][0]
    count = sum(p.numel() for p in diff.parameters())
    sizes = {
        "nano": (35e3, 60e3),
        "micro": (0.8e6, 0.85e6),
        "10m": (10e6, 12e6),
        "25m": (24e6, 27e6),
        "50m": (48e6, 52e6),
    }
    low, high = sizes[name.split("_")[1]]
    assert low < count < high


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_receives_a_gradient(name):
    model = small(name)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", NAMES)
def test_torchscript_and_fx_compute_the_same(name):
    model, x = small(name).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    traced = create_feature_extractor(model, {"norm": "out"})
    torch.testing.assert_close(traced(x)["out"], model.forward_features(x))


@pytest.mark.parametrize("name", NAMES)
def test_features_intermediates_and_pruning(name):
    x = torch.randn(2, 3, 32, 32)
    features = small(name, features_only=True, out_indices=(0, 2))
    assert [tuple(f.shape) for f in features.eval()(x)] == [(2, 64, 2, 2)] * 2
    assert features.feature_info.channels() == [64, 64]
    model = small(name).eval()
    final, intermediates = model.forward_intermediates(x, indices=2)
    torch.testing.assert_close(final, model.forward_features(x))
    assert len(intermediates) == 2
    model.prune_intermediate_layers(1)
    pruned = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    torch.testing.assert_close(pruned[0], intermediates[0])


@pytest.mark.parametrize("name", NAMES)
def test_classifier_input_size_channels_and_dtype_can_change(name):
    model = small(name)
    model.reset_classifier(7)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    model.reset_classifier(0, "avg")
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 64)
    model.set_input_size(img_size=(48, 64))
    assert model(torch.randn(1, 3, 48, 64)).shape == (1, 64)
    assert small(name, in_chans=1)(torch.randn(1, 1, 32, 32)).shape == (1, 5)
    assert small(name, dynamic_img_size=True)(torch.randn(1, 3, 48, 80)).shape == (1, 5)
    assert model.to(torch.bfloat16)(torch.randn(1, 3, 48, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert small(name, dtype=torch.float64)(torch.randn(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64
    with torch.device("meta"):
        assert small(name)(torch.randn(1, 3, 32, 32)).device.type == "meta"


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = small("diffvit_tiny_patch16")
        model.set_grad_checkpointing(checkpointing)
        model(torch.ones(2, 3, 32, 32)).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients)


def test_layer_decay_and_weight_decay_groups_are_those_of_a_timm_vit():
    def described(model, groups):
        names = {id(p): n for n, p in model.named_parameters()}
        return {
            names[id(p)]: (group.get("lr_scale"), group["weight_decay"])
            for group in groups
            for p in group["params"]
            if "lambda" not in names[id(p)]
        }

    diff, plain = small("diffvit_tiny_patch16"), timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=5)
    for make in (
        lambda m: param_groups_layer_decay(m, 0.1, m.no_weight_decay(), layer_decay=0.5),
        lambda m: param_groups_weight_decay(m, 0.1, m.no_weight_decay()),
    ):
        assert described(diff, make(diff)) == described(plain, make(plain))
        lambdas = [g for g in make(diff) if any(p is diff.blocks[1].attn.lambda_q1 for p in g["params"])]
        assert lambdas[0]["weight_decay"] == 0.0


def test_the_plain_twin_is_timms_vit_to_the_bit():
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=5)
    ours = small("diffvit_tiny_patch16", attn="plain")
    assert isinstance(ours.blocks[0].attn, timm.layers.Attention)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))


def test_whole_networks_travel_to_and_from_timms_own_diff_vit():
    theirs = timm.create_model("vit_tiny_patch16_224", attn_layer="diff", **SMALL, num_classes=5)
    ours = small("diffvit_tiny_patch16", head_norm=True, lambda_init="schedule", branch_dims=(16, 16))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert relative_error(ours(x), theirs(x)) < 1e-5
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attn", ["diff", "plain"])
def test_saving_and_loading_by_local_dir_is_bit_equal(name, attn, tmp_path):
    model = small(name, attn=attn, drop_path_rate=0.1).eval()
    model.set_lambda_init(0.125)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["attn"] == attn


def test_set_lambda_init_reaches_every_layer():
    model = small("diffvit_tiny_patch16")
    lambdas = [layer.compute_lambda(None).item() for layer in model.differential_layers()]
    assert lambdas != pytest.approx([0.05] * 3)  # without a checkpoint, the vectors of lambda are random
    model.set_lambda_init(0.5)
    assert [layer.lambda_init.item() for layer in model.differential_layers()] == [0.5] * 3
    assert small("diffvit_tiny_patch16", attn="plain").differential_layers() == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(attn="dif"), "attn='dif'.*'diff', 'diff_v2', 'plain'"),
        (dict(attn="diff_v2", branch_dims=(24, 8)), "branch_dims.*attn='diff'"),
        (dict(attn="diff_v2", head_norm=True), "head_norm.*attn='diff'"),
        (dict(attn="diff_v2", qk_norm=True), "no norms"),
        (dict(attn="diff_v2", lambda_init=0), "between 0 and 1"),
        (dict(conversion="calibrated"), "needs images"),
        (dict(conversion="pairs", num_heads=1), "1 heads do not pair"),
        (dict(attn_layer="diff"), "attn_layer is timm's"),
        (dict(conversion="svdd"), "conversion 'svdd'.*'svd'"),
        (dict(conversion="svd", attn="plain"), "conversion='svd'.*leave it out with attn='plain'"),
        (dict(num_heads=64, branch_dims=None, head_norm=True), "widths|odd"),
    ],
)
def test_wrong_settings_are_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small("diffvit_tiny_patch16", **kwargs)


class TestLoading:
    """The filter of create_model(..., pretrained=True), on checkpoints that the tests write."""

    @pytest.fixture
    def checkpoint(self, tmp_path):
        torch.manual_seed(1)
        source = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=5).eval()
        torch.save(source.state_dict(), tmp_path / "vit.pth")
        return source, tmp_path / "vit.pth"

    def load(self, path, **kwargs):
        overlay = dict(file=str(path), num_classes=5, input_size=(3, 32, 32))
        return small("diffvit_tiny_patch16", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()

    def test_a_plain_checkpoint_is_converted_whatever_the_head_channels_and_size(self, checkpoint):
        source, path = checkpoint
        x = torch.randn(4, 3, 32, 32)
        assert relative_error(self.load(path, lambda_init=0.0, branch_dims=(31, 1))(x), source(x)) < 0.05
        assert torch.equal(self.load(path, attn="plain")(x), source(x))
        for kwargs, shape in ((dict(num_classes=9), (1, 9)), (dict(in_chans=1), (1, 5)), (dict(img_size=64), (1, 5))):
            model = self.load(path, **kwargs)
            size = kwargs.get("img_size", 32)
            assert model(torch.randn(1, kwargs.get("in_chans", 3), size, size)).shape == shape
            expected = source.blocks[1].mlp.fc1.weight
            assert torch.equal(model.blocks[1].mlp.fc1.weight, expected)

    @pytest.mark.parametrize("attn", ["plain", "diff", "diff_v2"])
    def test_another_pooling_starts_a_new_norm_with_a_new_head_as_in_timm(self, checkpoint, attn):
        source, path = checkpoint
        file = dict(file=str(path), num_classes=5, input_size=(3, 32, 32))
        options = dict(pretrained=True, global_pool="avg", pretrained_cfg_overlay=file)
        timms = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "num_classes": 9, **options})
        model = self.load(path, attn=attn, num_classes=9, global_pool="avg")
        assert torch.equal(model.fc_norm.weight, timms.fc_norm.weight)
        assert isinstance(model.norm, torch.nn.Identity)
        assert torch.equal(model.blocks[2].mlp.fc1.weight, source.blocks[2].mlp.fc1.weight)
        with pytest.raises(RuntimeError, match="fc_norm"):
            timm.create_model("vit_tiny_patch16_224", **{**SMALL, "num_classes": 5, **options})
        with pytest.raises(RuntimeError, match="pass fc_norm=False to keep the checkpoint's final norm"):
            self.load(path, attn=attn, global_pool="avg")
        kept = self.load(path, attn=attn, global_pool="avg", fc_norm=False)
        assert torch.equal(kept.norm.weight, source.norm.weight)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_half_precision_checkpoint_is_rotated_without_a_second_rounding(self, checkpoint, dtype):
        source, path = checkpoint
        half = {name: tensor.to(dtype) for name, tensor in source.state_dict().items()}
        torch.save(half, path)
        from_half = self.load(path)
        torch.save({name: tensor.float() for name, tensor in half.items()}, path)
        x = torch.randn(2, 3, 32, 32)
        assert relative_error(from_half(x), self.load(path)(x)) < 1e-6
        assert self.load(path, attn="diff_v2").blocks[0].attn.qkv.weight.dtype == torch.float32

    def test_a_plain_checkpoint_becomes_version_2_without_any_loss(self, checkpoint):
        source, path = checkpoint
        x = torch.randn(4, 3, 32, 32)
        assert relative_error(self.load(path, attn="diff_v2")(x), source(x)) < 1e-6
        assert self.load(path, attn="diff_v2", num_classes=9)(x).shape == (4, 9)

    def test_pairs_load_into_half_the_heads(self, checkpoint):
        _, path = checkpoint
        assert self.load(path, conversion="pairs").blocks[0].attn.num_heads == 1

    def test_a_missing_block_is_an_error_even_if_timm_loads_with_strict_false(self, checkpoint):
        _, path = checkpoint
        state = torch.load(path)
        del state["blocks.1.mlp.fc1.weight"]
        torch.save(state, path)
        with pytest.raises(RuntimeError, match=r"missing.*blocks\.1\.mlp\.fc1\.weight"):
            self.load(path, num_classes=9)

    def test_a_missing_qkv_is_an_error_that_names_it(self, checkpoint):
        _, path = checkpoint
        state = torch.load(path)
        del state["blocks.2.attn.qkv.weight"]
        torch.save(state, path)
        with pytest.raises(RuntimeError, match=r"blocks\.2\.attn.*qkv\.weight"):
            self.load(path, num_classes=9)

    def test_an_unknown_tensor_is_an_error(self, checkpoint):
        _, path = checkpoint
        state = torch.load(path)
        state["blocks.0.extra"] = torch.zeros(1)
        torch.save(state, path)
        with pytest.raises(RuntimeError, match=r"unexpected.*blocks\.0\.extra"):
            self.load(path, num_classes=9)

    def test_a_diff_checkpoint_is_not_converted_twice(self, checkpoint):
        _, path = checkpoint
        model = self.load(path)
        torch.save(model.state_dict(), path)
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(self.load(path)(x), model(x))
        with pytest.raises(RuntimeError, match="attn='diff'"):
            self.load(path, attn="plain")

    def test_a_type_error_in_the_filter_is_not_swallowed_by_timm(self, checkpoint):
        with pytest.raises(RuntimeError, match="could not be converted"):
            checkpoint_filter_fn({3: torch.zeros(1)}, small("diffvit_tiny_patch16"), "svd")


def python(code):
    """Return what a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import diffvit_timm, importlib.util; assert importlib.util.find_spec('timm'); import timm",
        "from diffvit_timm import DifferentialAttention; import timm",  # each of these imports timm first
        "from diffvit_timm import from_vit; import timm",
        "import diffvit_timm.training.model, timm",
    ],
)
def test_the_models_are_registered_if_timm_is_imported_afterwards(imports):
    assert python(imports + "; print(timm.is_model('diffvit_nano'))") == "True"


def test_importing_the_package_imports_nothing_that_only_training_needs():
    training_only = (
        "datasets", "albumentations", "accelerate", "matplotlib", "sklearn", "scipy", "tyro", "rich", "open_clip"
    )  # fmt: skip
    new = f"[m for m in {training_only} if m in set(sys.modules) - before]"  # httpx, which timm loads, may load rich
    code = f"import sys, timm; before = set(sys.modules); import diffvit_timm; print({new})"
    assert python(code) == "[]"


def test_the_public_names_are_exported():
    assert all(hasattr(diffvit_timm, name) for name in diffvit_timm.__all__)
    assert isinstance(diffvit_timm.DiffVisionTransformer, type)
    assert issubclass(diffvit_timm.DiffVisionTransformer, nn.Module)


@pytest.mark.parametrize(
    "settings",
    [
        {"head_norm": True, "lambda_init": "schedule"},
        {"head_norm": True, "lambda_init": 0.7, "scale_attn_norm": True},
        {},
        {"attn": "diff_v2"},
        {"attn": "plain"},
    ],
    ids=["paper", "scale norm", "no head norm", "diff_v2", "plain"],
)
def test_a_fused_model_computes_the_same_and_its_head_norm_has_no_weight_left(tiny_model, settings):
    model, images = tiny_model(**settings).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sub_norm" in name:
                parameter.uniform_(0.5, 1.5)
        expected = model(images)
        assert model.fuse() is model
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-4)
        again = reparameterize_model(model)  # fusing a second time, by timm's own function, changes nothing
        torch.testing.assert_close(again(images), expected, atol=1e-5, rtol=1e-4)
    for layer in model.differential_layers() if "scale_attn_norm" not in settings else []:
        if (weight := layer.head_norm_weight()) is not None:
            torch.testing.assert_close(weight, torch.ones_like(weight))
