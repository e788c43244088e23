"""diffvit compare clip and benchmark models on the forms of ImageNet, on a few photos, and in several precisions."""

import csv
import json

import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from timm.data import ImageNetInfo

from diffvit_timm.cli import main
from diffvit_timm.models.pretrained import save_pretrained

pytestmark = pytest.mark.usefixtures("undrawn_figures")

TENCH, STINGRAY, CRANE = "n01440764", "n01498041", "n03126707"
INDICES = {TENCH: 0, STINGRAY: 6, CRANE: 517}
WORDS = {TENCH: "tench", STINGRAY: "stingray", CRANE: "construction crane"}
DESCRIPTIONS = ["tench, Tinca tinca", "stingray", "maillot, tank suit"]


@pytest.fixture(scope="module")
def imagenet_network(tmp_path_factory):
    """A folder of a network with ImageNet's 1,000 outputs, which calls every image a stingray."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=1000, img_size=32)
    with torch.no_grad():
        network.head.bias[INDICES[STINGRAY]] += 100
    folder = tmp_path_factory.mktemp("net") / "resnet50"
    save_pretrained(network, folder)
    return folder


def fill(root, *folders, count=2):
    """Write `count` photos of random colours per class folder."""
    for label, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 32), (60 * label, 90 * number % 256, 200)).save(root / folder / f"{number}.JPEG")
    return root


def compare(diffvit, clip_folder, dataset, *words):
    return diffvit("compare", "clip", "--clip", clip_folder, "--dataset", dataset, *words)


@pytest.fixture
def sentences(monkeypatch):
    """The names that CLIP is asked for from now on."""
    from diffvit_timm.zero_shot import comparison

    asked, make = [], comparison.zero_shot_classifier
    monkeypatch.setattr(
        comparison, "zero_shot_classifier", lambda clip, n, t: (asked.append((n, t)), make(clip, n, t))[1]
    )
    return asked


@pytest.mark.parametrize(
    ("prefix", "inside", "split"),
    [("val/", "", "validation"), ("validation/", "", "validation"), ("", "", "all"), ("val/", "val", "all")],
)
def test_folders_of_wordnet_ids_are_asked_for_by_words_and_need_no_training_images(
    diffvit, clip_folder, imagenet_network, sentences, tmp_path, prefix, inside, split
):
    root = fill(tmp_path / "images", *(f"{prefix}{name}" for name in WORDS)) / inside
    result = compare(diffvit, clip_folder, root, "--supervised", imagenet_network, "--output", tmp_path / "out")
    assert (result["split"], result["classes"]) == (split, 3)
    ((names, templates),) = sentences
    assert names == ["tench", "stingray", "construction crane"]
    assert "itap of a {}." in templates  # those of ImageNet
    clip, network = result["rows"]
    assert clip["images"] == network["images"] == 6
    assert network["top1"] == pytest.approx(1 / 3, abs=1e-4)


def test_a_hub_like_validation_split_of_descriptions_is_known_whole(
    diffvit, clip_folder, imagenet_network, sentences, tmp_path
):
    info = ImageNetInfo("imagenet-1k")
    names = ["crane2" if index == 517 else info.index_to_description(index) for index in range(1000)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    images = [Image.new("RGB", (40, 32), (9 * index, 40, 90)) for index in range(8)]
    rows = Dataset.from_dict({"image": images, "label": [0, 6, 134, 517, 638, 639, 264, 474]}, features=features)
    rows.to_parquet(tmp_path / "imagenet-1k" / "validation-00000-of-00001.parquet")
    words = ("--supervised", imagenet_network, "--output", tmp_path / "out")
    result = compare(diffvit, clip_folder, tmp_path / "imagenet-1k", *words)
    assert (result["split"], result["classes"], result["rows"][1]["images"]) == ("validation", 1000, 8)
    ((asked, _),) = sentences
    assert len({name.lower() for name in asked}) == 1000
    assert (asked[0], asked[517]) == ("tench", "construction crane")


def test_an_unknown_wordnet_id_is_refused_before_a_model_is_loaded(refusal, tmp_path):
    folder = fill(tmp_path / "images", TENCH, "n99999999")
    words = ("--clip", "RN50:openai", "--dataset", folder, "--output", tmp_path / "out")
    message = refusal("compare", "clip", *words, "--convert", "mirror")
    assert message.startswith(f"--dataset {folder}: the class n99999999 is not a WordNet id of ImageNet-22k")
    message = refusal("benchmark", "models", "--model", "clip:RN50:openai", *words[2:])
    assert message.startswith(f"--dataset {folder}: the class n99999999 is not a WordNet id of ImageNet-22k")


def test_a_calibration_without_training_images_is_refused_before_a_model_is_loaded(refusal, tmp_path):
    words = ("--clip", "RN50:openai", "--output", tmp_path / "out", "--convert", "calibrated", "--dataset")
    folder = fill(tmp_path / "a", f"val/{TENCH}", f"val/{STINGRAY}")
    message = refusal("compare", "clip", *words, folder)
    expected = f"--convert calibrated reads training images: --dataset {folder} has no train split, only validation"
    assert message.startswith(expected)
    assert not (tmp_path / "out").exists()


def test_a_mirror_needs_no_training_images(diffvit, clip_folder, tmp_path):
    folder = fill(tmp_path / "photos", "cat", "dog", count=1)
    result = compare(diffvit, clip_folder, folder, "--convert", "mirror", "--output", tmp_path / "out")
    assert result["agreement"][0][1] == 1.0


@pytest.mark.parametrize(("classes", "count", "images"), [(("stingray", "tench"), 1, 2), (tuple(WORDS.values()), 2, 6)])
def test_a_few_photos_have_a_gallery_whose_axes_name_both_models(
    diffvit, clip_folder, imagenet_network, saved_figures, tmp_path, classes, count, images
):
    folder = fill(tmp_path / "photos", *classes, count=count)
    words = ("--supervised", imagenet_network, "--output", tmp_path / "out")
    result = compare(diffvit, clip_folder, folder, *words)
    assert [row["images"] for row in result["rows"]] == [images, images]
    _, *galleries = saved_figures
    both = [f"probability by {name}" for name in (clip_folder.name, "resnet50")]
    for gallery, wins in zip(galleries, result["alone_right"].values(), strict=True):
        labels = [axis.get_xlabel() for axis in gallery.axes if axis.get_xlabel()]
        assert labels == both * min(5, wins)
        assert f": {wins} of {images} images of photos (split: all)" in gallery.get_suptitle()


def test_a_single_image_is_compared(diffvit, clip_folder, imagenet_network, tmp_path):
    folder = fill(tmp_path / "photos", "tench", "stingray")
    words = ("--supervised", imagenet_network, "--images", 1, "--output", tmp_path / "out")
    assert [row["images"] for row in compare(diffvit, clip_folder, folder, *words)["rows"]] == [1, 1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_is_compared_with_fp32(clip_folder, imagenet_network, tmp_path, capsys, precision):
    folder = fill(tmp_path / "photos", *WORDS, count=4)
    words = ["compare", "clip", "--clip", clip_folder, "--supervised", imagenet_network, "--dataset", folder,
             "--convert", "mirror", "--precision", precision, "--output", tmp_path / "out"]  # fmt: skip
    main([str(word) for word in words])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["precision"], len(result["rows"])) == (precision, 3)
    network = result["rows"][2]
    assert (network["same_as_fp32"], network["top1"]) == (1.0, network["top1_fp32"])
    assert all(0 <= row["same_as_fp32"] <= 1 and 0 <= row["top1_fp32"] <= 1 for row in result["rows"])
    assert f"12 images of photos (split: all), 3 classes, {precision}\n" in printed.err
    assert f"same: images with the same class in {precision} and fp32" in printed.err
    header, *_ = csv.reader((tmp_path / "out" / "table.csv").read_text().splitlines())
    assert header[-2:] == ["top1_fp32", "same_as_fp32"]


@pytest.fixture(scope="module")
def resnet_clip(make_clip):
    """A folder of a CLIP whose image tower is a small ResNet with the layers of RN50."""
    return make_clip("resnet-clip", image_size=32, layers=[1, 1, 1, 1], width=8, head_width=8)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_resnet_of_clip_against_a_resnet_of_timm(diffvit, resnet_clip, tmp_path, precision):
    save_pretrained(timm.create_model("test_resnet", num_classes=1000), tmp_path / "resnet")
    folder = fill(tmp_path / "images", *(f"val/{name}" for name in WORDS))
    words = ("--supervised", tmp_path / "resnet", "--precision", precision, "--output", tmp_path / "out")
    result = compare(diffvit, resnet_clip, folder, *words)
    assert [(row["model"], row["images"]) for row in result["rows"]] == [(resnet_clip.name, 6), ("resnet", 6)]
    words = ("--model", f"clip:{resnet_clip}", tmp_path / "resnet", "--dataset", folder, "--output", tmp_path / "table")
    options = ("--precision", f"fp32,{precision}", "--batch-size", 2, "--repeats", 2, "--images", 4)
    rows = diffvit("benchmark", "models", *words, *options)["rows"]
    assert [row["accuracy"] is None for row in rows] == [False] * 4
    assert all(row["cosine"] > 0.99 for row in rows)


def test_an_unknown_precision_is_refused(refusal, tmp_path):
    message = refusal("compare", "clip", "--convert", "svd", "--precision", "fp8", "--output", tmp_path / "out")
    assert "fp8" in message
    assert "--precision" in message


def test_one_table_says_whether_clip_is_the_same_how_fast_and_how_large(
    diffvit, clip_folder, imagenet_network, tmp_path
):
    folder = fill(tmp_path / "images", *(f"val/{name}" for name in WORDS))
    result = diffvit(
        "benchmark", "models", "--model", f"clip:{clip_folder}", imagenet_network, "--dataset", folder, "--precision",
        "fp32,fp16", "--batch-size", 2, "--repeats", 2, "--images", 5, "--output", tmp_path / "out"
    )  # fmt: skip
    assert result["split"] == "validation"
    clip, half, _, network = result["rows"]
    assert (clip["model"], network["model"]) == (f"{clip_folder.name}", "resnet50")
    assert (clip["agreement"], clip["speed"]) == (1.0, 1.0)
    assert 0 <= half["agreement"] <= 1
    assert half["speed"] > 0
    assert half["weights_mb"] == pytest.approx(clip["weights_mb"] / 2, rel=0.01)
    assert all(0.99 < row["cosine"] <= 1.0001 and row["accuracy"] is not None for row in result["rows"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clip:RN50:nowhere"], "--model clip:RN50:nowhere needs a known tag of its weights: open_clip has clip:RN50:"),
        (["clip:RN50", "--pretrained"], "--model clip:RN50 needs a known tag of its weights: open_clip has clip:RN50:"),
        (["clip:RN5:openai"], "--model clip:RN5:openai is not known to open_clip: did you mean clip:RN50"),
        (["clip:{}"], "--model clip:{} has no open_clip_config.json: give the folder of an open_clip model"),
        (["clip:xyz"], "--model clip:xyz is not known to open_clip: give clip:ARCHITECTURE:TAG, clip:hf-hub:NAME or"),
        (["clip:RN50:openai"], "--model clip:RN50:openai cannot be loaded"),  # there is no network here
    ],
)
def test_a_clip_that_cannot_be_timed_is_one_line(refusal, tmp_path, words, message):
    words = [word.format(tmp_path) for word in words]
    given = refusal("benchmark", "models", "--model", *words, "--output", tmp_path / "out")
    assert given.startswith(message.format(tmp_path))
    assert not (tmp_path / "out").exists()


def test_robustness_and_faithfulness_need_no_training_images_either(diffvit, imagenet_network, tmp_path):
    folder = fill(tmp_path / "images", *(f"val/{name}" for name in WORDS))
    words = ("--dataset", folder, "--images", 4, "--output")
    corrupted = ("--corruptions", "fog", "--severities", 1)
    assert diffvit("compare", "robustness", imagenet_network, *corrupted, *words, tmp_path / "a")["images"] == 4
    assert diffvit("compare", "faithfulness", "--models", imagenet_network, "--steps", 2, *words, tmp_path / "b")


def test_two_classes_of_the_same_words_are_named(clip_folder, imagenet_network, tmp_path, capsys):
    folder = fill(tmp_path / "photos", "great_white_shark", "Great white shark", count=1)
    words = ["compare", "clip", "--clip", clip_folder, "--supervised", imagenet_network, "--dataset", folder]
    main([str(word) for word in [*words, "--output", tmp_path / "out"]])
    expected = "CLIP is asked for several classes by the same words, so it cannot tell them apart: great white shark\n"
    assert expected in capsys.readouterr().err
