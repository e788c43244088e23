"""diffvit convert, predict and export write what timm loads, print what was kept, and refuse bad input in one line."""

import json

import pytest
import timm
import torch
from PIL import Image

from diffvit_timm import DifferentialAttentionV2
from diffvit_timm.cli import main
from diffvit_timm.models.pretrained import save_pretrained


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A plain ViT of four heads and the user's own classes: (model, its local-dir: name)."""
    torch.manual_seed(0)
    shape = dict(img_size=32, patch_size=16, embed_dim=64, depth=2, num_heads=4, num_classes=3)
    model = timm.create_model("vit_tiny_patch16_224", **shape).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
    torch.nn.init.normal_(model.head.weight)
    folder = tmp_path_factory.mktemp("source")
    save_pretrained(model, folder, label_names=["cat", "dog", "owl"])
    return model, f"local-dir:{folder}"


def report_of(capsys):
    return json.loads(capsys.readouterr().out)


def error(capsys, *argv):
    """Return the one line on stderr of an exit with code 2."""
    with pytest.raises(SystemExit) as caught:
        main(["convert", *map(str, argv)])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_the_folder_holds_the_converted_model_with_its_class_names(source, tmp_path, capsys):
    main(["convert", source[1], str(tmp_path / "new" / "out"), "--attn", "diff_v2"])
    loaded = timm.create_model(f"local-dir:{tmp_path}/new/out", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert isinstance(loaded.blocks[0].attn, DifferentialAttentionV2)
    torch.testing.assert_close(loaded(x), source[0](x), rtol=0, atol=1e-5)
    assert list(loaded.pretrained_cfg["label_names"]) == ["cat", "dog", "owl"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]  # nothing is left beside it
    assert capsys.readouterr().out == ""  # no images, no report


@pytest.mark.parametrize("method", ["svd", "slice", "pairs", "calibrated", "contrast"])
def test_each_method_reports_on_images_that_it_did_not_calibrate_on(source, parquet_folder, tmp_path, capsys, method):
    argv = ["convert", source[1], str(tmp_path / "out"), "--images", str(parquet_folder), "--method", method]
    attn = "diff_v2" if method == "contrast" else "diff"
    main([*argv, "--attn", attn, "--calibration-images", "10", "--json"])
    result = report_of(capsys)
    assert (result["attn"], result["method"]) == (attn, method)
    assert result["report"]["images"] == (36 - 10 if method in ("pairs", "calibrated", "contrast") else 36)
    assert 0 < result["report"]["output_error"] < 1.5


def test_with_images_the_default_is_calibrated_and_the_report_a_table(source, image_folder, tmp_path, capsys):
    flat = image_folder / "train" / "cat"  # a folder of images without classes
    main(["convert", source[1], str(tmp_path / "out"), "--images", str(flat), "--calibration-images", "8"])
    printed = capsys.readouterr()
    assert "calibrated" in printed.err
    assert printed.out.startswith("conversion on 4 images")
    assert "attention error" in printed.out


def test_distillation_brings_the_model_nearer_to_its_source(source, parquet_folder, tmp_path, capsys):
    errors = []
    for passes in ("0", "60"):
        argv = ["convert", source[1], str(tmp_path / passes), "--images", str(parquet_folder), "--json"]
        settings = ["--distill", passes, "--branch-dims", "8", "8", "--lambda-init", "0.3"]
        main([*argv, "--calibration-images", "18", *settings])
        errors.append(report_of(capsys)["report"]["output_error"])
    assert errors[1] < errors[0]


def test_settings_of_the_layer_reach_it(source, tmp_path):
    main(["convert", source[1], str(tmp_path / "out"), "--lambda-init", "0.125", "--branch-dims", "8", "8"])
    layer = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).blocks[0].attn
    assert layer.branch_dims == (8, 8)
    assert layer.lambda_init.item() == 0.125


def test_bad_input_is_one_line_and_nothing_is_written(source, parquet_folder, tmp_path, capsys):
    out, name = tmp_path / "out", source[1]
    assert "SOURCE vit_tinny is not known to timm" in error(capsys, "vit_tinny", out)
    assert "SOURCE local-dir:" in error(capsys, f"local-dir:{tmp_path}/nowhere", out)
    assert "--images" in error(capsys, name, out, "--images", tmp_path / "nowhere")
    assert "'mirror' is not one of attn='diff'" in error(capsys, name, out, "--method", "mirror")
    assert "needs images" in error(capsys, name, out, "--method", "calibrated")
    assert "--calibration-images 256" in error(capsys, name, out, "--images", parquet_folder)
    assert "--device warp" in error(capsys, name, out, "--device", "warp")
    for option in ("--calibration-images", "--report-images"):
        assert f"{option} 0 must be at least 1" in error(capsys, name, out, option, 0)
    assert "--distill 2 needs images" in error(capsys, name, out, "--distill", 2)
    assert "--seed -1" in error(capsys, name, out, "--seed", -1)
    assert "--lambda-init 1.5" in error(capsys, name, out, "--lambda-init", "1.5")
    assert "--lambda-init nan" in error(capsys, name, out, "--lambda-init", "nan")
    assert "sum to 16" in error(capsys, name, out, "--branch-dims", "9", "9")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_one_stands_in_can_be_written(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["convert", source[1], "."])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_used_folder_is_not_touched(source, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert "OUT" in error(capsys, source[1], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_source_that_cannot_be_converted_is_refused_with_the_reason(tmp_path, capsys):
    save_pretrained(timm.create_model("test_resnet", num_classes=3), tmp_path / "resnet")
    message = error(capsys, f"local-dir:{tmp_path}/resnet", tmp_path / "out")
    assert "ResNet cannot be converted: it has no self-attention layer" in message
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name, colour in (("red", (200, 10, 10)), ("blue", (10, 10, 200))):
        Image.new("RGB", (50, 40), colour).save(folder / f"{name}.png")
    return [str(folder / "red.png"), str(folder / "blue.png")]


def test_predictions_are_the_networks_with_its_own_class_names(source, photographs, capsys):
    name = source[1]
    model = timm.create_model(name, pretrained=True).eval()
    main(["predict", *photographs, "--model", name, "--top", "2", "--json"])
    said = json.loads(capsys.readouterr().out)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    for path in photographs:
        with torch.no_grad():
            shares = model(transform(Image.open(path))[None]).softmax(-1)[0]
        assert [row[0] for row in said[path]] == [["cat", "dog", "owl"][i] for i in shares.argsort(descending=True)[:2]]
        assert [row[1] for row in said[path]] == pytest.approx(shares.sort(descending=True)[0][:2].tolist(), rel=1e-4)
    main(["predict", photographs[0], "--model", name])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3


def test_a_picture_shows_which_predictions_are_right(source, tmp_path, capsys, saved_figures):
    paths = []
    for folder in ("cat", "dog", "owl", "yak"):
        (tmp_path / folder).mkdir()
        paths.append(str(tmp_path / folder / "image.png"))
        Image.new("RGB", (50, 40), "red").save(paths[-1])
    picture = tmp_path / "predictions.png"
    main(["predict", *paths, "--model", source[1], "--top", "1", "--json", "--picture", str(picture)])
    printed = capsys.readouterr()
    (winner,) = {rows[0][0] for rows in json.loads(printed.out).values()}
    count = "4 images with their predictions: 1 of 3 right, 1 of unknown class"
    assert printed.err.strip().endswith(f"{picture}: {count}")
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    marks = [axis.get_title() for axis in saved_figures[-1].axes if axis.images]
    assert [("✓" in mark, "✗" in mark) for mark in marks] == [
        (name == winner, name != winner) for name in ("cat", "dog", "owl")
    ] + [(False, False)]
    assert "plain attention" in saved_figures[-1].get_suptitle()


def test_an_untrusted_class_name_cannot_steer_the_terminal(tiny_model, photographs, tmp_path, capsys):
    save_pretrained(tiny_model(), tmp_path / "net", ["cat\x1b]0;owned\x07", "dog\nowl", "good"])
    main(["predict", photographs[0], "--model", str(tmp_path / "net")])
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split("%  ")[1] for line in lines[1:]) == ["cat\\x1b]0;owned\\x07", "dog\\nowl", "good"]


def test_an_export_says_how_close_and_how_fast_it_is(source, tmp_path, capsys):
    main(["export", source[1], str(tmp_path / "net.pt2"), "--form", "pt2"])
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}/net.pt2: ")
    assert "times the speed of PyTorch" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nowhere.png", "--model", "{net}"], "IMAGES nowhere.png is neither a file nor a folder: "),
        (["predict", "{red}", "--model", "vit_tinyest"], "--model vit_tinyest is not known"),
        (["predict", "{red}", "--model", "{net}", "--top", "0"], "--top 0 must be at least 1"),
        (["predict", "{red}", "--model", "{net}", "--device", "cuda:9"], "--device cuda:9 cannot be used: "),
        (["predict", "{red}", "--model", "{net}", "--device", "meta"], "--device meta cannot be used: "),
        (["predict", "--model", "{net}"], "IMAGES is empty: name at least one file or folder"),
        (["predict", "{red}", "--model", "{net}", "--picture", "a.jpg"], "--picture a.jpg must be a PNG file"),
        (["predict", "{red}", "--model", "{net}", "--picture", "{red}"], "exists already: choose another file"),
        (["predict", "{red}", "--model", "{net}", "--picture", "no/a.png"], "--picture no/a.png needs the folder no"),
        (["export", "vit_tinyest", "net.onnx"], "MODEL vit_tinyest is not known"),
        (["export", "{net}", "{red}"], "already exists: give a new file"),
        (["export", "{net}", "no/where/net.onnx"], "there is no folder no/where"),
        (["export", "{net}", "net.pt2"], "OUT net.pt2 does not fit --form onnx"),
    ],
)
def test_bad_input_of_predict_and_export_is_one_line(
    source, photographs, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([argument.format(net=source[1], red=photographs[0]) for argument in arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())
