"""A model that the user names as a folder, a run folder or a Hub repository brings its weights, in every command."""

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from diffvit_timm.cli.parser import parse_options, preset_names
from diffvit_timm.cli.protocol import read_protocol
from diffvit_timm.errors import InputError
from diffvit_timm.models.pretrained import load_model
from diffvit_timm.studies.inference_speed import load_candidate
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.model import check_source

pytestmark = pytest.mark.usefixtures("undrawn_figures")

HUB = "hf-hub:someone/net"


@pytest.fixture
def forms(weights, tmp_path, monkeypatch):
    """The forms of the same weights: a folder, timm's name of it, a run folder, and a repository in a cache."""
    best = weights("run/best")
    snapshot = tmp_path / "hub" / "models--someone--net" / "snapshots" / ("0" * 40)
    shutil.copytree(best, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return {"folder": str(best), "timm": f"local-dir:{best}", "run": str(tmp_path / "run"), "hub": HUB}


FORMS = pytest.mark.parametrize("form", ["folder", "timm", "run", "hub"])
KINDS = {"folder": "a folder of weights", "run": "a folder of weights", "hub": "a repository on the Hub"}


@pytest.mark.parametrize("preset", sorted({*preset_names()} - {"demo"}))
@FORMS
def test_it_replaces_the_random_weights_of_every_preset(forms, form, preset):
    model = parse_options(TrainConfig, ["--config", preset, "--model", forms[form], "--dataset", "x"]).model
    assert model.pretrained
    assert check_source(model)


@pytest.mark.parametrize("form", ["run", "hub"])
def test_a_training_with_the_preset_scratch_starts_from_it(diffvit, forms, form, image_folder, tmp_path):
    result = diffvit(
        "train", "--config", "scratch", "--model", forms[form], "--dataset", image_folder, "--lr", "1e-12",
        "--weight-decay", "0", "--max-steps", "1", "--warmup-epochs", "0", "--augment", "none", "--batch-size", "8",
        "--opt", "adamw", "--output", tmp_path / "out",
    )  # fmt: skip
    source = load_file(f"{forms['folder']}/model.safetensors")
    trained = load_file(tmp_path / "out" / "best" / "model.safetensors")
    assert all(torch.allclose(trained[name], tensor, atol=1e-9) for name, tensor in source.items())
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["pretrained"] is True
    tested = diffvit(
        "train", "--config", "scratch", "--eval-only", "--model", forms[form], "--dataset", image_folder,
        "--batch-size", "8", "--output", tmp_path / "tested",
    )  # fmt: skip
    assert tested["test_loss"] == result["test_loss"]


@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize(
    "words",
    [
        ["train", "--dataset", "FOLDER", "--model", "NET", "--no-pretrained"],
        ["train", "--no-pretrained", "--config", "cifar10_micro", "--precision", "no", "--model", "NET"],
        ["export", "NET", "net.onnx", "--no-pretrained"],
        ["compare", "conversions", "--dataset", "FOLDER", "--source", "NET", "--no-pretrained"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_beside_it_the_users_own_no_pretrained_is_an_error(refusal, forms, form, words, image_folder, tmp_path):
    places = {"FOLDER": str(image_folder), "NET": forms[form], "net.onnx": str(tmp_path / "net.onnx")}
    message = refusal(*(places.get(word, word) for word in words))
    assert message.startswith("--no-pretrained: ")
    assert f"{forms[form]} is {KINDS[form]}, which always brings its weights: leave --no-pretrained out" in message


def test_a_file_of_options_that_names_it_and_random_weights_is_an_error(refusal, forms, tmp_path):
    path = tmp_path / "own.yaml"
    for lines in (("pretrained: false", f"model: {HUB}"), (f"model: {HUB}", "pretrained: false")):
        path.write_text("\n".join(["config: scratch", "dataset: x", *lines]))
        assert refusal("train", "--config", path).startswith(f"--no-pretrained: --model {HUB} is a repository")
    path.write_text(f"config: scratch\ndataset: x\nmodel: {HUB}\n")
    assert parse_options(TrainConfig, ["--config", str(path)]).model.pretrained
    other = parse_options(TrainConfig, ["--config", str(path), "--model", "diffvit_nano"]).model
    assert (other.model, other.pretrained) == ("diffvit_nano", False)


def test_a_model_that_timm_names_starts_from_random_weights_and_the_training_says_so(image_folder, tmp_path, capsys):
    from diffvit_timm.cli import main

    options = ["--dataset", image_folder, "--max-steps", "1", "--warmup-epochs", "0", "--output", tmp_path / "out"]
    shape = [
        "--batch-size",
        "8",
        "--img-size",
        "16",
        "--model-kwargs",
        "patch_size=8",
        "depth=1",
        "embed_dim=32",
        "num_heads=2",
    ]
    main([str(word) for word in ("train", "--config", "scratch", "--model", "diffvit_nano", *options, *shape)])
    assert "diffvit_nano starts from random weights" in capsys.readouterr().err


def test_an_arm_of_a_study_brings_its_weights(forms, tmp_path):
    study = {
        "title": "A study", "train": {"config": "scratch", "dataset": "x"},
        "baseline": "scratch", "rates": [1e-3, 2e-3],
        "tuning_seeds": [10, 11], "test_seeds": [0, 1], "arms": {"scratch": {}, "yours": {"model": forms["run"]}},
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    assert [arm.train.model.pretrained for arm in read_protocol(str(path)).arms] == [False, True]
    study["train"]["pretrained"] = False
    path.write_text(yaml.safe_dump(study))
    with pytest.raises(InputError, match=r"`pretrained=False`: `model=.*run` is a folder of weights"):
        check_source(read_protocol(str(path)).arms[1].train.model)


@pytest.mark.parametrize("study", ["ablation", "scaling"])
def test_a_study_from_scratch_refuses_it(refusal, weights, study, monkeypatch, tmp_path):
    weights("diffvit_mine")
    monkeypatch.chdir(tmp_path)
    for form in ("diffvit_mine", HUB):
        assert "has no plain twin to compare with" in refusal("study", study, "--model", form)


@FORMS
def test_a_benchmark_times_its_weights(forms, form):
    network = load_candidate(forms[form], "net", [], pretrained=False).network
    source = load_file(f"{forms['folder']}/model.safetensors")
    assert all(torch.equal(tensor, source[name]) for name, tensor in network.state_dict().items() if name in source)


def test_every_spelling_of_a_repository_brings_its_weights(forms):
    source = load_file(f"{forms['folder']}/model.safetensors")
    for given in (HUB, "hf_hub:someone/net", "HF-HUB:someone/net"):
        assert torch.equal(load_model(given, pretrained=False).head.weight, source["head.weight"])


def test_the_base_of_a_conversion_is_a_name_of_timm(refusal, forms):
    for form in ("folder", "timm", "run", "hub"):
        base = f"base={forms[form]}"
        message = refusal("train", "--dataset", "x", "--model", "diffvit", "--model-kwargs", base)
        assert message.startswith(f"--model-kwargs {base} must be the name of a timm model: to convert a folder")


def test_a_missing_folder_stays_an_error_beside_a_preset(refusal):
    message = refusal("train", "--config", "scratch", "--model", "runs/nowhere/best")
    assert message.startswith("--model runs/nowhere/best is neither a model name nor an existing folder")


def test_the_demo_has_its_own_models(refusal, forms):
    message = refusal("train", "--demo", "--model", forms["run"])
    assert message == f"--model {forms['run']} has no place in the demo, which has its own models: leave it out"


def test_the_demo_takes_no_sizes_of_its_images(refusal):
    message = refusal("train", "--demo", "--progressive-sizes", "4")
    assert message == "--progressive-sizes 4 has no place in the demo, which is three short trainings: leave it out"
