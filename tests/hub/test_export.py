"""Exported networks compute what the network computes, at any batch size."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.utils.onnx import onnx_export
from torch import nn

from diffvit_timm import __version__, differential_layers, from_vit
from diffvit_timm.cli import main
from diffvit_timm.errors import InputError
from diffvit_timm.hub import export
from diffvit_timm.hub.export import export_metadata, export_model
from diffvit_timm.models.pretrained import save_pretrained

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"head_norm": True, "lambda_init": "schedule"}, {"attn": "diff_v2", "pos_embed": "sincos"}, {"attn": "plain"},
     {"class_token": False, "global_pool": "avg", "reg_tokens": 2}],
    ids=["diff", "paper", "diff_v2", "plain", "average"],
)  # fmt: skip
def test_the_exported_network_is_the_network_at_any_batch_size(tiny_model, tmp_path, form, settings):
    model = tiny_model(**settings).eval()
    exported = export_model(model, tmp_path / f"net{export.SUFFIXES[form]}", form, IMAGES)
    assert exported.difference < 1e-5
    images = torch.randn(7, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(exported.run(images), model(images), atol=1e-5, rtol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [f"net{export.SUFFIXES[form]}"]


def test_eight_bits_are_smaller_and_close(tiny_model, tmp_path):
    model = tiny_model(embed_dim=128).eval()
    whole = export_model(model, tmp_path / "net.onnx", "onnx", IMAGES)
    small = export_model(model, tmp_path / "net8.onnx", "onnx_int8", IMAGES)
    assert small.path.stat().st_size < 0.4 * whole.path.stat().st_size
    assert 0 < small.difference < 0.1


@pytest.mark.parametrize("form", ["onnx", "onnx_int8"])
def test_the_weights_of_a_large_network_are_in_a_second_file_and_both_can_be_moved(
    tiny_model, tmp_path, monkeypatch, form
):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    (tmp_path / "here").mkdir()
    model = tiny_model(embed_dim=128).eval()
    exported = export_model(model, tmp_path / "here" / "net.onnx", form, IMAGES)
    files = sorted((tmp_path / "here").iterdir())
    assert [path.name for path in files] == ["net.onnx", "net.onnx.data"]
    assert exported.size == sum(path.stat().st_size for path in files)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = export._load_onnx(tmp_path / "there" / "net.onnx", form)
    assert torch.equal(moved(IMAGES), exported.run(IMAGES))


def classify_without_this_package(network, path):
    """Return the probability of each class by its name, with onnxruntime, Pillow and NumPy only."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    settings = json.loads(metadata["preprocessing"])
    channels, height, width = settings["input_size"]
    assert settings["crop_mode"] == "center"
    image = Image.open(path).convert("RGB" if channels == 3 else "L")
    # The shorter side gets the size of the network divided by crop_pct, and the middle is cut out.
    short = int(height / settings["crop_pct"])
    size = [short if side == min(image.size) else int(short * side / min(image.size)) for side in image.size]
    image = image.resize(size, Image.Resampling[settings["interpolation"].upper()])
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255  # (H, W, C)
    pixels = (pixels - np.float32(settings["mean"])) / np.float32(settings["std"])
    (outputs,) = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})
    shares = np.exp(outputs[0] - outputs[0].max())
    return dict(zip(json.loads(metadata["class_names"]), (shares / shares.sum()).tolist(), strict=True))


@pytest.mark.parametrize("form", ["onnx", "onnx_int8"])
def test_an_onnx_file_is_enough_to_classify_an_image(tiny_model, tmp_path, capsys, form):
    model = tiny_model(img_size=32, pretrained_cfg_overlay=dict(mean=(0.4, 0.5, 0.6), crop_pct=0.8))
    torch.nn.init.normal_(model.head.weight)  # so that the probabilities differ
    names = ["Katze \N{CAT FACE}", "dog", "owl"]
    save_pretrained(model, tmp_path / "net", names)
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((70, 47)).save(tmp_path / "image.png")
    main(["export", str(tmp_path / "net"), str(tmp_path / "net.onnx"), "--form", form])
    capsys.readouterr()
    main(["predict", str(tmp_path / "image.png"), "--model", str(tmp_path / "net"), "--json"])
    (expected,) = json.loads(capsys.readouterr().out).values()
    found = classify_without_this_package(tmp_path / "net.onnx", tmp_path / "image.png")
    assert found == pytest.approx(dict(expected), abs=1e-5 if form == "onnx" else 0.02)
    assert max(found.values()) > 0.4


def test_the_metadata_says_what_the_network_is(tiny_model, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = tiny_model(attn="diff_v2", in_chans=1).eval()
    metadata = export_metadata(model)
    images = torch.randn(2, 1, 16, 16)
    export_model(model, tmp_path / "net.onnx", "onnx", images, metadata)
    export_model(model, tmp_path / "net.pt2", "pt2", images, metadata)
    written = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    extra = {"metadata.json": ""}
    torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    assert written == json.loads(extra["metadata.json"]) == metadata
    assert json.loads(written.pop("preprocessing")) == {
        "input_size": [1, 16, 16], "mean": [0.5], "std": [0.5], "interpolation": "bicubic", "crop_pct": 0.9,
        "crop_mode": "center",
    }  # fmt: skip
    assert written == {
        "class_names": "[]", "activation": "softmax", "model": "diffvit_tiny_patch16", "attention": "diff_v2",
        "diffvit_timm": __version__,
    }  # fmt: skip


def test_a_converted_network_is_named_after_its_source():
    plain = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=1)
    assert export_metadata(plain)["model"] == "deit_tiny_patch16_224"
    metadata = export_metadata(from_vit(plain))
    assert (metadata["model"], metadata["attention"]) == ("deit_tiny_patch16_224", "diff")
    assert json.loads(metadata["class_names"])[0] == "tench, Tinca tinca"


@pytest.mark.parametrize(
    ("name", "use_dynamo"),
    [("diffvit_tiny_patch16", False), ("diffvit2_tiny_patch16", False), ("diffvit_small_patch16_dinov3", False),
     ("diffvit_tiny_patch16", True)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # the exporters warn of their own internals
def test_timms_own_exporter_writes_no_dropout(tmp_path, name, use_dynamo):
    onnx = pytest.importorskip("onnx")
    shape = dict(img_size=32, embed_dim=48, depth=1, num_heads=3, num_classes=3)
    model = timm.create_model(name, exportable=True, **shape)
    assert not any(layer.fused_attn for layer in differential_layers(model))
    onnx_export(model, str(tmp_path / "net.onnx"), batch_size=2, input_size=(3, 32, 32), use_dynamo=use_dynamo)
    operations = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert "Softmax" in operations
    assert "Dropout" not in operations


def test_nothing_is_overwritten(tiny_model, tmp_path):
    for name in ("net.onnx", "net2.onnx.data"):
        (tmp_path / name).write_text("mine")
    for name, message in (
        ("net.onnx", "already exists"),
        ("net2.onnx", r"may store its weights in .*net2\.onnx\.data, which already exists: choose another name"),
    ):
        with pytest.raises(InputError, match=message):
            export_model(tiny_model(), tmp_path / name, "onnx", IMAGES)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["mine", "mine"]


def test_an_exported_file_that_computes_something_else_is_deleted(tiny_model, tmp_path, monkeypatch):
    load = export._load_pt2

    def wrong(path):
        run = load(path)
        return lambda images: run(images) + 1e-2

    monkeypatch.setattr(export, "_load_pt2", wrong)
    with pytest.raises(RuntimeError, match="the pt2 file computes something else than the network"):
        export_model(tiny_model().eval(), tmp_path / "net.pt2", "pt2", IMAGES)
    assert not list(tmp_path.iterdir())


def test_a_wrong_suffix_and_a_missing_package_are_one_line(tiny_model, tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match=r"^`out=.*net\.pt` does not fit `form=onnx`: choose a file name that ends in \.onnx$"
    ):
        export_model(tiny_model(), tmp_path / "net.pt", "onnx", IMAGES)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"^`form=onnx` needs onnxscript: pip install 'diffvit_timm\[onnx\]'"):
        export_model(tiny_model(), tmp_path / "net.onnx", "onnx", IMAGES)
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    """A network whose control flow depends on the values of its images, which torch cannot export."""

    def forward(self, x):
        return x.flatten(1) if x.sum().item() > 0 else -x.flatten(1)


def test_a_network_that_cannot_be_exported_is_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(InputError, match=r"^torch cannot export this network with `form=pt2`"):
        export_model(Branching().eval(), tmp_path / "net.pt2", "pt2", torch.rand(2, 3, 4, 4))
    assert not list(tmp_path.iterdir())


def test_a_file_that_onnxruntime_refuses_is_one_line_and_is_deleted(tiny_model, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")

    def refuse(path, providers):
        raise Exception("\x1b[96mInvalid model.\x1b[0m Node input x is not a graph input\nmore")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(
        InputError, match=r"`form=onnx` \(Exception: Invalid model\. Node input x .* input\): try another"
    ):
        export_model(tiny_model().eval(), tmp_path / "net.onnx", "onnx", IMAGES)
    assert not list(tmp_path.iterdir())
