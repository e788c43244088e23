"""Trainings on images with any number of classes: loss, score, saved model, its predictions, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Image, List
from PIL import Image as PILImage
from run_faults import outcome, small_run
from sklearn.metrics import average_precision_score

from diffvit_timm.cli import main
from diffvit_timm.data.class_balance import positive_weights
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.loading import image_batches
from diffvit_timm.errors import InputError
from diffvit_timm.hub.export import export_metadata
from diffvit_timm.hub.model_card import model_card
from diffvit_timm.hub.redaction import redacted_records
from diffvit_timm.models.outputs import is_multi_label_model, probabilities
from diffvit_timm.models.pretrained import load_model, save_pretrained
from diffvit_timm.studies.attacks import attack_networks
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.objective import MultiLabel
from diffvit_timm.training.recipe import train

pytestmark = pytest.mark.usefixtures("undrawn_figures")

NAMES = ["red", "green", "blue"]


def image_of(label, seed):
    """Return noise with one brighter channel per class."""
    pixels = np.random.default_rng(seed).integers(0, 120, (16, 16, 3), dtype=np.uint8)
    pixels[..., label] += 100
    return PILImage.fromarray(pixels)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Parquet files with a list of labels per image."""
    folder = tmp_path_factory.mktemp("colours")
    features = Features({"image": Image(), "colours": List(ClassLabel(names=NAMES))})
    for split, count, seed in (("train", 120, 0), ("validation", 24, 1), ("test", 40, 2)):
        labels = [np.flatnonzero(row).tolist() for row in np.random.default_rng(seed).random((count, 3)) < 0.4]
        images = [image_of(label, 1000 * seed + number) for number, label in enumerate(labels)]
        rows = Dataset.from_dict({"image": images, "colours": labels}, features=features)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


LEARNS = dict(epochs=12, batch_size=16, lr=4e-3, layer_decay=1.0, warmup_epochs=1.0, label_smoothing=0.0)


@pytest.fixture(scope="module")
def run(colours, tmp_path_factory):
    """A finished run and its result."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = train(small_run(folder, colours, **LEARNS, attention_every=12), "train", multi_label=True)
    return folder, result


def test_the_loss_is_the_binary_cross_entropy_of_float64_with_weights_and_smoothing():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(6, 3, generator=generator), (torch.rand(6, 3, generator=generator) < 0.5).float()
    weights = torch.tensor([1.0, 3.0, 0.5])
    smooth = targets.double() * 0.8 + 0.1
    log_p, log_q = F.logsigmoid(logits.double()), F.logsigmoid(-logits.double())
    expected = -(weights * smooth * log_p + (1 - smooth) * log_q).mean()
    loss = MultiLabel(3, smoothing=0.2, weights=weights).loss(logits.bfloat16().float(), targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    assert MultiLabel(3, 0.2, weights).loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)
    plain = -(targets.double() * log_p + (1 - targets.double()) * log_q).mean(1)
    assert MultiLabel(3, 0.2, weights).losses(logits, targets).tolist() == pytest.approx(plain.tolist(), rel=1e-6)


def test_the_weight_of_a_class_is_the_images_without_it_over_those_with_it():
    targets = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert positive_weights(targets).tolist() == pytest.approx([1 / 3, 3, 1])
    extremes = torch.zeros(1000, 2)
    extremes[0, 0], extremes[:, 1] = 1, 1
    assert positive_weights(extremes).tolist() == pytest.approx([100, 0.01])


def test_a_training_learns_every_class_and_reports_what_scikit_learn_computes(run, colours):
    folder, result = run
    splits = load_splits(str(colours), multi_label=True)
    model = load_model(str(folder)).eval()
    with torch.inference_mode():
        logits = torch.cat([model(images) for images in image_batches(model, splits.test)]).numpy()
    is_true = np.array([[index in own for index in range(3)] for own in splits.test["label"]])
    expected = average_precision_score(is_true, logits, average=None)
    assert list(result["test_average_precisions"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert result["test_mean_average_precision"] == pytest.approx(expected.mean(), abs=1e-5)
    assert result["test_mean_average_precision"] > 0.9
    assert result["test_chance"] == pytest.approx(is_true.mean())
    low, high = result["test_interval_95"]
    assert low <= result["test_mean_average_precision"] <= high
    expected_loss = F.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(is_true).float())
    assert result["test_loss"] == pytest.approx(expected_loss.item(), abs=1e-5)
    assert "test_accuracy" not in result
    assert result["val_mean_average_precision"] == max(
        row["val_mean_average_precision"] for row in rows_of(folder) if "val_loss" in row
    )
    for name in ("training.png", "predictions.png", "attention/epoch-012.png"):
        assert (folder / name).stat().st_size > 10_000


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_saved_model_says_that_an_image_may_have_any_number_of_classes(run, tmp_path):
    folder, _ = run
    config = json.loads((folder / "best" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"  # as transformers writes it
    assert "problem_type" not in config["pretrained_cfg"]
    model = load_model(str(folder))
    logits = torch.tensor([[2.0, 2.0, -3.0]])
    assert probabilities(model, logits)[0].tolist() == pytest.approx([0.8808, 0.8808, 0.0474], abs=1e-4)
    assert export_metadata(model)["activation"] == "sigmoid"
    save_pretrained(model, tmp_path, label_names=NAMES)  # saved again, it still says so
    assert is_multi_label_model(load_model(str(tmp_path)))
    assert not is_multi_label_model(
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    )  # timm does not read it


def test_a_converted_model_still_says_so(colours, tmp_path):
    plain = train(small_run(tmp_path / "plain", colours, attn="plain", epochs=1), "train", multi_label=True)
    main(["convert", plain["output"], str(tmp_path / "converted")])
    assert is_multi_label_model(load_model(str(tmp_path / "converted")))


def test_predict_gives_one_probability_per_class_and_no_true_class(run, tmp_path, capsys):
    (tmp_path / "red").mkdir()
    image_of([0, 1], 5).save(tmp_path / "red" / "both.png")
    main(["predict", str(tmp_path / "red"), "--model", str(run[0]), "--json"])
    streams = capsys.readouterr()
    ((_, predicted),) = json.loads(streams.out).items()
    shares = dict(predicted)
    assert min(shares["red"], shares["green"]) > 0.5 > shares["blue"]
    assert shares["red"] + shares["green"] > 1


def test_the_card_shows_the_mean_average_precision_and_the_sigmoid(run):
    card = model_card(run[0], redacted_records(run[0]), "user/colours", ["run/predictions.png"])
    value = run[1]["test_mean_average_precision"]
    assert f"| mean average precision | {value:.2%} (95 % interval" in card
    assert "model(transform(image)[None]).sigmoid()" in card
    assert "type: map" in card
    assert "accuracy" not in card.split("<details><summary>All options")[0]
    assert "| red |" in card
    assert "assigns one of them" not in card
    assert "The bars of the classes that an image has are blue" in card


def test_a_run_that_was_stopped_continues_to_the_same_weights(colours, tmp_path):
    config = small_run(tmp_path / "run", colours, epochs=2, mixup=0.4)
    train(config, "train", multi_label=True)
    expected = outcome(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    train(config, "train", multi_label=True)
    assert outcome(tmp_path / "run") == expected


@pytest.mark.parametrize(
    "options", [{"class_balance": "loss"}, {"mixup": 0.8, "cutmix": 1.0}, {"max_train_samples": 40}, {"stream": 64}]
)
def test_other_options_work_with_several_labels(colours, tmp_path, options):
    short = {**LEARNS, "epochs": 2, "max_train_samples": 64 * ("stream" not in options), **options}
    result = train(small_run(tmp_path / "run", colours, **short, log_every=1), "train", multi_label=True)
    assert 0 < result["test_mean_average_precision"] <= 1
    losses = [row["train_loss"] for row in rows_of(tmp_path / "run") if "train_loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"samples_per_class": 4}, "samples_per_class"),
        ({"label_noise": 0.2}, "label_noise"),
        ({"class_balance": "sampler"}, "class_balance"),
        ({"head_init": "probe"}, "head_init"),
    ],
)
def test_options_that_need_one_label_per_image_are_refused_before_the_training(colours, tmp_path, options, name):
    with pytest.raises(InputError, match=f"`{name}=.*needs one label per image.*may have several"):
        train(small_run(tmp_path / "run", colours, **options), "train", multi_label=True)
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_refused(run, colours, tmp_path):
    with pytest.raises(InputError, match=r"`teacher=.*needs one label per image"):
        train(small_run(tmp_path / "run", colours, teacher=str(run[0])), "train", multi_label=True)


def test_a_network_for_several_labels_is_no_teacher_and_no_classifier_of_single_labels(run, image_folder, tmp_path):
    model = load_model(str(run[0]))
    model.pretrained_cfg["label_names"] = ["cat", "dog", "owl"]
    save_pretrained(model, tmp_path / "net", label_names=["cat", "dog", "owl"])
    net = str(tmp_path / "net")
    with pytest.raises(InputError, match=r"`teacher=.* was trained for several labels per image"):
        train(small_run(tmp_path / "run", image_folder, teacher=net), "train")
    test = TrainConfig.from_flat(str(image_folder), net, output=str(tmp_path / "run"), eval_only=True)
    with pytest.raises(InputError, match="was trained for several labels per image, but the dataset has one label per"):
        train(test, "train")
    with pytest.raises(InputError, match="the network was trained for several labels per image"):
        attack_networks({"net": model}, load_splits(str(image_folder)).test, [1], 1, ["cat", "dog", "owl"])


def test_studies_compare_accuracies_and_refuse_lists_of_labels(colours, tmp_path):
    with pytest.raises(InputError, match="has a list of labels per image, but this needs one label per image"):
        train(small_run(tmp_path / "run", colours), "study")


def test_the_console_command_trains_and_says_what_it_reached(colours, tmp_path, capsys):
    options = ["--no-pretrained", "--img-size", "16", "--model-kwargs", "patch_size=8", "embed_dim=32", "depth=2"]
    options += ["num_heads=2", "--epochs", "1", "--workers", "0", "--output", str(tmp_path / "run")]
    main(["train", "--dataset", str(colours), "--model", "diffvit_tiny_patch16", *options])
    streams = capsys.readouterr()
    assert "after each epoch: mean average precision and loss (nats) on the validation images" in streams.err
    assert "Test mean average precision: " in streams.err
    assert "Random scores would reach about " in streams.err
    assert "balanced" not in streams.err
    assert set(json.loads(streams.out)["test_average_precisions"]) == set(NAMES)
