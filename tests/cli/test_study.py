"""diffvit study: many short trainings as one table and one picture, and refusals before the first of them."""

import json
import re

import pytest

from diffvit_timm.cli.commands import study_ablation
from diffvit_timm.cli.parser import parse_options
from diffvit_timm.errors import DivergedError
from diffvit_timm.studies import best_networks
from diffvit_timm.studies.ablation import STUDIES
from diffvit_timm.studies.runs import SCRATCH
from diffvit_timm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn_figures")

SHAPE = ("--img-size", "16", "--model-kwargs", "patch_size=8")


@pytest.fixture
def two_settings(monkeypatch):
    """Every study has only the first two of its settings: how many there are changes nothing."""
    for name, settings in STUDIES.items():
        monkeypatch.setitem(STUDIES, name, dict(list(settings.items())[:2]))


@pytest.fixture
def ablation(diffvit, image_folder, tmp_path):
    """Function: study, more arguments -> its result, from runs of two updates; and the folder."""
    short = ["--dataset", image_folder, "--output", tmp_path / "study", "--max-steps", "2", "--batch-size", "8"]
    shape = [*SHAPE, "embed_dim=32", "num_heads=2", "depth=1"]

    def study(name, *more):
        words = ["study", "ablation", "--study", name, *short, "--seeds", "2", *shape, *more]
        return diffvit(*words)["studies"][name]

    return study, tmp_path / "study"


def test_an_ablation_has_a_row_per_setting_with_its_plain_twin_and_runs_nothing_twice(
    ablation, two_settings, monkeypatch
):
    study, folder = ablation
    result = study("pos_embed")
    assert [(row["setting"], row["attn"], row["seeds"]) for row in result["rows"]] == [
        (name, attn, 2) for name in ("none", "learn") for attn in ("diff", "plain")
    ]
    assert all(n == 2 for _, _, n in result["differences"].values())
    assert {path.name for path in folder.iterdir()} == {"pos_embed", "results.json", "validation.png", "figures"}
    own = folder / "pos_embed"
    assert {path.name for path in own.iterdir() if path.is_file()} == {"study.csv", "study.json", "study.png"}
    assert len([path for path in own.iterdir() if path.is_dir()]) == 8
    monkeypatch.setattr(Trainer, "fit", None)  # no training may begin
    assert study("pos_embed") == result


def test_several_studies_write_one_file_of_tables_and_show_where_the_best_networks_look(
    diffvit, image_folder, tmp_path, two_settings, saved_figures, monkeypatch
):
    monkeypatch.setattr(best_networks, "IMAGES", 1)
    short = ["--dataset", image_folder, "--output", tmp_path / "study", "--max-steps", "1", "--batch-size", "8"]
    shape = [*SHAPE, "embed_dim=32", "depth=1", "--seeds", "1"]
    result = diffvit("study", "ablation", "--study", "heads", "mlp_ratio", *short, *shape)["studies"]
    folder = tmp_path / "study"
    assert json.loads((folder / "results.json").read_text())["heads"]["rows"][0]["setting"] == "1 head"
    assert {study: len(table["rows"]) for study, table in result.items()} == {"heads": 4, "mlp_ratio": 4}
    curves = next(figure for figure in saved_figures if figure.get_suptitle().startswith("Validation loss"))
    assert [axis.get_title() for axis in curves.axes] == ["heads", "mlp_ratio"]
    figures = folder / "figures"
    networks = [path.name for path in figures.iterdir() if path.is_dir()]
    assert sorted(name.split("-")[-2] for name in networks) == ["model", "plain"]
    for name in networks:
        drawn = {path.name for path in (figures / name).glob("*.png")}
        assert {"training.png", "cat-heads.png", "cat-layers.png", "cat-last-layer.png"} <= drawn
    assert {"rollout.png", "compare.png", "positions.png"} <= {path.name for path in figures.glob("*.png")}
    # Another study in the same folder keeps the tables of the first ones.
    diffvit("study", "ablation", "--study", "lambda", *short, *shape)
    assert set(json.loads((folder / "results.json").read_text())) == {"heads", "mlp_ratio", "lambda"}


def test_kinds_of_attention_are_compared_with_plain_attention(ablation):
    study, _ = ablation
    result = study("attention", "--seeds", "1")
    assert [(row["setting"], row["attn"]) for row in result["rows"]] == [
        ("plain", "plain"), ("plain, widened", "plain"), ("the paper's", "diff"), ("without head norm", "diff"),
        ("version 2", "diff_v2")
    ]  # fmt: skip
    mean, half, n = result["differences"]["version 2"]
    accuracy = {row["setting"]: row["mean"] for row in result["rows"]}
    assert (mean, half, n) == (pytest.approx(accuracy["version 2"] - accuracy["plain"], abs=1e-4), None, 1)
    assert "plain" not in result["differences"]


def test_a_study_starts_from_the_options_of_the_preset_scratch():
    config = parse_options(study_ablation.Options, ["--config", "scratch", "--study", "depth"])
    assert config.train == SCRATCH


def test_scaling_has_a_point_per_size_seed_and_kind_of_attention(diffvit, image_folder, tmp_path):
    short = ["--dataset", image_folder, "--output", tmp_path / "runs", "--seeds", "1", "--max-steps", "1"]
    result = diffvit(
        "study", "scaling", *short, "--batch-size", "8", *SHAPE, "--sizes", "32x1", "64x1", "32x2", "64x2"
    )  # fmt: skip
    assert [(p["size"], p["attn"]) for p in result["points"]] == [
        (size, attn) for size in ("32x1", "64x1", "32x2", "64x2") for attn in ("diff", "plain")
    ]
    flops = {(p["size"], p["attn"]): p["flops"] for p in result["points"]}
    assert all(flops[size, "diff"] == flops[size, "plain"] for size, _ in flops)  # matched
    assert {attn: list(laws) for attn, laws in result["laws"].items()} == {
        "diff": ["parameters", "flops"],
        "plain": ["parameters", "flops"],
    }
    assert result["over_plain"]["diff"]["flops"]["interval"] is None  # there is one seed
    assert (tmp_path / "runs" / "scaling.png").exists()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("48x2", "--sizes 48x2: the width must be a multiple of 32"),
        ("huge", "--sizes huge is not"),
        ("32x0", "--sizes 32x0 is not"),
        ("32x2 32x2", "--sizes 32x2 32x2: give one or more sizes, each once"),
        ("", "--sizes needs at least one value"),
        ("vit_tiny_patch16_224", "--sizes vit_tiny_patch16_224 has no plain twin"),
    ],
)
def test_invalid_sizes_are_refused(sizes, message, refusal):
    assert message in refusal("study", "scaling", "--sizes", *sizes.split())


def test_what_the_sizes_vary_is_not_an_argument_of_the_model(refusal):
    said = refusal("study", "scaling", "--model-kwargs", "depth=3")
    assert "--model-kwargs depth=... is what --sizes varies: leave it out, or pass --model-kwargs depth=null to" in said
    said = refusal("study", "ablation", "--study", "depth", "--config", "cifar10_fast", "--dataset", "nowhere")
    assert (
        "--model-kwargs depth=... is what --study depth varies: leave it out, or pass --model-kwargs depth=null" in said
    )
    words = ("--study", "depth", "--config", "cifar10_fast", "--dataset", "nowhere", "--model-kwargs", "depth=null")
    assert "depth" not in refusal("study", "ablation", *words)


def test_patches_that_do_not_divide_the_image_are_refused_with_the_option_to_set(refusal):
    said = refusal("study", "ablation", "--study", "patch_size", "--model", "diffvit_nano")
    assert "8 x 8 pixels do not divide the 28 pixels of --model diffvit_nano: pass --img-size 32" in said


@pytest.mark.parametrize(
    "options",
    [
        "--seed 1",
        "--resume auto",
        "--seeds 0",
        "--push-to-hub me/net",
        "--dry-run",
        "--eval-only",
        "--attn plain",
        "--model vit_tiny_patch16_224",
        "--label-noise 0.1 --study noise",
        "--mixup 0.2 --study augmentation",
        "--batch-size 512 --study batch_size",
        "--model-kwargs depth=3 --study depth",
        "--attn diff_v2 --study attention",
        "--lambda-warmup 2 --study attention",
        "--model-kwargs branch_dims=(16,16) --study attention",
        "--model diffvit_tiny_patch16 --study lambda",
    ],
)
def test_an_ablation_refuses_what_it_sets_itself_and_models_that_do_not_suit(options, refusal):
    options = options.split()
    named = options[0] + (f" {options[1]}".split("=")[0] if options[1:] else "")
    assert named in refusal("study", "ablation", *options)


def test_a_training_that_diverges_leaves_the_others_their_table(ablation, monkeypatch, capsys):
    study, folder = ablation
    fit = Trainer.fit

    def diverge(trainer, checkpoint=None):
        if getattr(trainer.learner.net, "attn", "") == "diff_v2" or trainer.config.run.seed == 1:
            raise DivergedError("the loss is nan")
        return fit(trainer, checkpoint)

    monkeypatch.setattr(Trainer, "fit", diverge)
    with pytest.raises(SystemExit) as caught:
        study("attention")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "6 of 10 trainings diverged, and the results are those of the others: lower --lr" in said
    result = json.loads((folder / "attention" / "study.json").read_text())
    assert [(row["setting"], row["seeds"]) for row in result["rows"]] == [
        ("plain", 1), ("plain, widened", 1), ("the paper's", 1), ("without head norm", 1)
    ]  # fmt: skip
    assert set(result["differences"]) == {"plain, widened", "the paper's", "without head norm"}
    assert len((folder / "attention" / "study.csv").read_text().splitlines()) == 1 + 4


def test_a_study_that_a_signal_ends_says_how_to_continue_and_keeps_its_rows(ablation, monkeypatch, capsys):
    study, folder = ablation
    fit = Trainer.fit

    def end(trainer, checkpoint=None):
        if trainer.learner.net.attn == "plain":
            return fit(trainer, checkpoint)
        raise SystemExit(143)

    monkeypatch.setattr(Trainer, "fit", end)
    with pytest.raises(SystemExit):
        study("attention")
    assert "the same command continues the study" in capsys.readouterr().err
    assert len((folder / "attention" / "study.csv").read_text().splitlines()) == 1 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ablation --study attention --model-kwargs qk_norm=True", "attn='diff_v2' has no norms"),
        ("ablation --study pos_embed --model-kwargs embed_dim=42 num_heads=3", "change embed_dim=42"),
        ("scaling --sizes 64x2 32x1 --freeze 2", "--freeze 2: .* has only 1 blocks"),
    ],
)
def test_a_setting_that_cannot_be_made_is_refused_before_the_first_training(
    arguments, message, refusal, image_folder, tmp_path
):
    said = refusal("study", *arguments.split(), "--dataset", image_folder, "--output", tmp_path / "runs")
    assert re.search(message, said)
    assert not (tmp_path / "runs").exists()
