"""Training by LoRA: what is trained, that it reaches the outputs, and that the saved network is an ordinary one."""

import re
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file

from diffvit_timm import differential_layers, from_vit
from diffvit_timm.errors import InputError
from diffvit_timm.models.pretrained import load_model, save_pretrained
from diffvit_timm.studies.coverage import small_random_network
from diffvit_timm.training import lora as lora_module
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.learner import Learner
from diffvit_timm.training.lora import add_lora, from_merged, merged_copy
from diffvit_timm.training.model import create_model
from diffvit_timm.training.objective import SingleLabel
from diffvit_timm.training.optim import build_optimizer
from diffvit_timm.training.recipe import train
from diffvit_timm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn_figures")

pytest.importorskip("peft")

SMALL = dict(embed_dim=48, depth=2, num_heads=3, num_classes=5)
NETWORKS = {
    "ViT": ("vit_tiny_patch16_224", dict(SMALL, img_size=32)),
    "DINOv3": ("vit_small_patch16_dinov3", dict(SMALL, img_size=32)),
    "Swin": ("swin_tiny_patch4_window7_224", dict(embed_dim=24, depths=(1, 1), num_heads=(2, 2), img_size=32,
                                                  window_size=4, num_classes=5)),
    "Gemma 4": ("gemma4_vit_167m", dict(SMALL, head_dim=16, intermediate_size=96, position_embedding_size=64,
                                        img_size=32)),
}  # fmt: skip


def network(name, attn="plain"):
    torch.manual_seed(0)
    architecture, shape = NETWORKS[name]
    plain = small_random_network(architecture, **shape)
    return plain if attn == "plain" else from_vit(plain, attn=attn)


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope="module")
def source(tiny_model, tmp_path_factory):
    """A folder of the weights of a plain network of 2 blocks and 3 classes, whose attention is far from uniform."""
    folder = tmp_path_factory.mktemp("source")
    model = tiny_model(attn="plain")
    torch.nn.init.normal_(model.head.weight, std=0.02)
    save_pretrained(model, folder / "net", ["cat", "dog", "owl"])
    return folder / "net"


@pytest.fixture
def options(image_folder, source, tmp_path):
    """Function: name of the run folder, options -> the options of a training of 2 epochs of 4 updates."""

    def make(name="run", **given):
        fixed = dict(batch_size=8, workers=0, lr=3e-3, epochs=2, lora=4, output=str(tmp_path / name))
        return TrainConfig.from_flat(str(image_folder), str(source), **{**fixed, **given})

    return make


@pytest.mark.parametrize("attn", ["plain", "diff", "diff_v2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_addition_learns_and_a_merged_copy_computes_the_same(name, attn):
    model = network(name, attn).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        add_lora(model, 2, [model.get_classifier()])
        torch.testing.assert_close(model(images), before, rtol=0, atol=0)
    model(images).square().sum().backward()
    additions = {name: p for name, p in model.named_parameters() if ".lora_B." in name}
    projections = [name for name, _ in model.named_parameters() if re.search(r"attn.*\.base_layer\.weight", name)]
    assert len(projections) >= 2 * 2  # qkv and proj of two layers
    assert len(additions) >= 4 * 2  # and two layers of two MLPs
    assert all(p.grad.abs().max() > 0 for p in additions.values())
    with torch.no_grad():
        for parameter in additions.values():
            torch.nn.init.normal_(parameter, std=0.05)
        merged = merged_copy(model)
        assert not torch.allclose(model(images), before, rtol=1e-2)
        torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-5)
    assert merged.state_dict().keys() == network(name, attn).state_dict().keys()
    model.load_state_dict(from_merged(model, merged.state_dict()))
    torch.testing.assert_close(model(images), merged(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("attn", "lambdas"), [("plain", ()), ("diff", ("lambda_q1", "lambda_k1", "lambda_q2",
                         "lambda_k2")), ("diff_v2", ("lambda_proj.weight",))])  # fmt: skip
def test_only_lora_the_head_and_lambda_are_trained(attn, lambdas):
    model = network("ViT", attn)
    add_lora(model, 2, [model.head])
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    expected = {f"blocks.{i}.{part}.lora_{x}.default.weight" for i in range(2) for part in parts for x in "AB"}
    expected |= {f"blocks.{i}.attn.{name}" for i in range(2) for name in lambdas}
    assert trained_names(model) == expected | {"head.weight", "head.bias"}


def test_the_lambda_of_timms_own_differential_layers_is_trained_too():
    model = timm.create_model("vit_dlittle_patch16_reg1_gap_256", img_size=32, **SMALL)
    add_lora(model, 2, [model.head])
    lambdas = {f"blocks.{i}.attn.lambda_{name}" for i in range(2) for name in ("q1", "k1", "q2", "k2")}
    assert lambdas <= trained_names(model)


def test_the_learning_rate_falls_from_block_to_block_as_without_lora():
    model = network("ViT", "diff")
    add_lora(model, 2, [model.head])
    names = {id(p): name for name, p in model.named_parameters()}
    config = TrainConfig.from_flat("data", "net", lr=1e-3, layer_decay=0.5, lambda_lr_scale=3.0).optim
    rates = {
        names[id(p)]: group["lr"] / 1e-3 for group in build_optimizer(model, config).param_groups
        for p in group["params"]
    }  # fmt: skip
    assert rates.keys() == trained_names(model)
    for name, rate in rates.items():
        level = {"0": 0.25, "1": 0.5}[name.split(".")[1]] if name.startswith("blocks") else 1.0
        assert rate == pytest.approx(level * (3 if "lambda_" in name else 1)), name


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [("beit_base_patch16_224", "blocks.0.attn.qkv"), ("eva02_tiny_patch14_224", "blocks.0.attn.qkv")],
)
def test_a_network_in_which_lora_would_have_no_effect_is_refused(architecture, layer):
    model = timm.create_model(architecture, img_size=56 if "eva" in architecture else 32, **SMALL)
    with pytest.raises(InputError, match=rf"^`lora=2` does not apply to the network .* the weight of {layer} without"):
        add_lora(model, 2, [model.head])
    assert not hasattr(model, "peft_config")
    with pytest.raises(InputError, match=r"^`lora=2` does not apply to the network ResNet: it has no self-attention"):
        add_lora(timm.create_model("test_resnet"), 2, [])


@pytest.mark.parametrize(
    "more",
    [{"attn": "diff"}, {"attn": "diff_v2", "ema": 0.5}, {"attn": "plain", "opt": "nmuon"}, {"grad_checkpointing": True},
     {"attn": "diff", "head_init": "probe", "reset_head": True}, {"attn": "diff", "precision": "bf16"}],
    ids=str,
)  # fmt: skip
def test_the_saved_network_is_an_ordinary_one_with_the_accuracy_of_the_trained_one(options, splits, tmp_path, more):
    config = options(**more)
    model, _ = create_model(config.model, splits)
    if config.model.head_init == "probe":
        from diffvit_timm.training.probe import fit_linear_probe

        fit_linear_probe(model, splits, make_accelerator(config.run, tmp_path / "run", 0.0))
    trainer = Trainer(config, make_accelerator(config.run, tmp_path / "run", config.optim.ema), model, splits,
                      tmp_path / "run")  # fmt: skip
    unmerged = []
    save = trainer.learner.saved_model

    def saved_model():
        unmerged.append(trainer.evaluate(trainer.test_loader, "unmerged"))  # of the weights that are saved now
        return save()

    trainer.learner.saved_model = saved_model
    result = trainer.fit()
    assert result["lora"] == 4
    rounds = "precision" in more  # bf16 rounds a merged matrix otherwise than the two products without merging
    assert result["test_loss"] == pytest.approx(unmerged[-1].loss, rel=1e-2 if rounds else 1e-5)
    assert rounds or result["test_accuracy"] == unmerged[-1].accuracy
    weights = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in weights)
    saved = load_model(str(tmp_path / "run"))
    layers = {"plain": 0, "model": 0}.get(config.model.attn, 2)
    assert len(differential_layers(saved)) == layers


def test_a_compiled_network_computes_the_same():
    model = network("ViT", "diff_v2")
    add_lora(model, 2, [model.head])
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


def test_a_resumed_run_ends_with_the_same_weights(options, tmp_path, monkeypatch):
    whole = train(options("whole", attn="diff", ema=0.5), "lora")
    config = options("stopped", attn="diff", ema=0.5)
    save = Trainer._save_checkpoint

    def save_and_stop(trainer):
        save(trainer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, "lora")
    resumed = train(config.replace(resume="auto"), "lora")
    assert resumed["test_loss"] == whole["test_loss"]
    one, other = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_dry_run_saves_and_loads_the_merged_network(options, tmp_path):
    assert train(options(attn="diff_v2", dry_run=True), "lora")["updates"] == 8
    assert not (tmp_path / "run").exists()


def test_lora_changes_the_blocks_and_leaves_the_stem(options, source, tmp_path):
    train(options(), "lora")
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "run" / "best"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert changed == {f"blocks.{i}.{part}.weight" for i in range(2) for part in parts} | {"head.weight", "head.bias"}
    for i in range(2):
        change = after[f"blocks.{i}.mlp.fc1.weight"] - before[f"blocks.{i}.mlp.fc1.weight"]
        assert torch.linalg.matrix_rank(change, rtol=1e-3) == 4


def test_a_small_network_is_advised_to_compare(capsys, monkeypatch):
    add_lora(network("ViT"), 2, [])
    said = capsys.readouterr().err
    assert re.match(r"LoRA of rank 2 in 8 layers: 0\.0\d M parameters\n", said)
    assert "the network has only 0.1 M parameters. LoRA was reported to cost accuracy" in said
    monkeypatch.setattr(lora_module, "SMALL", 1e3)
    add_lora(network("ViT"), 2, [])
    assert "reported" not in capsys.readouterr().err


def test_a_missing_peft_is_one_error_before_anything_is_loaded(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"^`lora=4` needs peft \(.*\): pip install 'diffvit_timm\[lora\]'$"):
        train(options().replace(dataset="nowhere"), "lora")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lora": -1}, "`lora=-1` must not be negative"),
        ({"lora": 5000}, "`lora=5000` must be at most 1024"),
        ({"freeze": "2"}, "`lora=4` freezes the blocks: leave out `freeze=2`"),
        ({"query_lr_scale": 2.0}, "`query_lr_scale=2.0` has no effect with `lora=4`: leave it out"),
        ({"eval_only": True}, "`lora=4` trains, and `eval_only` does not: leave one of them out"),
    ],
)
def test_options_that_contradict_lora_are_refused(options, more, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        options(**more)


def test_a_sharded_model_is_refused(options):
    accelerator = SimpleNamespace(is_fsdp2=True)
    with pytest.raises(InputError, match=r"^`lora=4` does not work with a sharded model: leave it out$"):
        Learner(options(), accelerator, network("ViT"), objective=SingleLabel(5), updates_per_epoch=4, updates=8)


def test_random_weights_are_not_adapted(options):
    config = options().replace(model="diffvit_tiny_patch16", pretrained=False)
    with pytest.raises(InputError, match=r"^`lora=4` adapts pretrained weights: leave out `pretrained=False`$"):
        train(config, "lora")
