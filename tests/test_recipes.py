"""The recipes run; what they are good for is in recipes/README.md."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.commands.config.config_args import load_config_from_file

from diffvit_timm.cli.parser import parse_config
from diffvit_timm.errors import DivergedError, InputError
from diffvit_timm.models.pretrained import save_pretrained
from diffvit_timm.training.trainer import Trainer

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", sorted((RECIPES / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_launch_files_are_what_accelerate_reads(name):
    config = load_config_from_file(str(name))
    assert name.name in name.read_text().splitlines()[0]  # the command that uses it
    assert config.num_processes >= 1


def test_the_slurm_script_parses():
    subprocess.run(["bash", "-n", RECIPES / "configs" / "slurm.sh"], check=True)


def test_throughput_times_both_loops_on_the_same_images(image_folder, monkeypatch):
    shape = ("img_size=16", "patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")
    arguments = ["throughput.py", "--dataset", str(image_folder), "--batch-size", "8", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--max-steps", "5", "--rounds", "2", "--model-kwargs", *shape])
    result = recipe("throughput").main()
    assert {len(result[name]) for name in ("loader alone", "this trainer", "timm's loop")} == {2}
    assert min(result["this trainer"]) > 0
    assert result["quartiles"][0] <= result["ratio"] <= result["quartiles"][1]


def test_throughput_refuses_a_batch_that_the_images_do_not_fill(image_folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--dataset", str(image_folder), "--batch-size", "4096"])
    with pytest.raises(InputError, match="--batch-size 4096 is more than the"):
        recipe("throughput").main()


@pytest.mark.parametrize("option", [("--stream", "64"), ("--epochs", "2"), ("--output", "runs/fast")])
def test_throughput_refuses_what_its_loops_do_not_read(option):
    with pytest.raises(InputError, match=f"{' '.join(option)} has no effect"):
        parse_config(recipe("throughput").ThroughputConfig, list(option))


@pytest.mark.parametrize("name", ["finetune_pets", "train_cifar", "ablate", "scaling_laws"])
def test_the_help_of_a_training_waits_for_no_torch(name):
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(RECIPES)!r}); sys.argv[1:] = ['--help']\n"
        f"try: runpy.run_path({str(RECIPES / name)!r} + '.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([name for name in ('torch', 'numpy', 'datasets', 'matplotlib') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--batch-size INT" in out
    assert out.splitlines()[-1] == "[]"


@pytest.fixture
def ablation(image_folder, tmp_path, monkeypatch):
    """Function: study, more arguments -> its result, from runs of two updates; and the folder."""
    monkeypatch.syspath_prepend(RECIPES)
    shape = ("img_size=16", "patch_size=8", "embed_dim=32", "num_heads=2", "depth=1")

    def study(name, *more):
        arguments = ["ablate.py", "--study", name, "--dataset", str(image_folder), "--output", str(tmp_path / "study")]
        short = ["--max-steps", "2", "--batch-size", "8", "--seeds", "2", "--model-kwargs", *shape]
        monkeypatch.setattr(sys, "argv", [*arguments, *short, *more])
        return recipe("ablate").main()

    return study, tmp_path / "study"


def test_an_ablation_is_a_row_a_setting_with_its_plain_twin_and_runs_nothing_twice(ablation, monkeypatch):
    study, folder = ablation
    result = study("pos_embed")
    assert [(row["setting"], row["attn"], row["seeds"]) for row in result["rows"]] == [
        (name, attn, 2) for name in ("none", "learn", "learn_2d", "sincos") for attn in ("diff", "plain")
    ]
    assert all(n == 2 for _, _, n in result["differences"].values())
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"study.csv", "study.json", "study.png"}
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 16
    monkeypatch.setattr(Trainer, "fit", None)  # no training may begin
    assert study("pos_embed") == result


def test_kinds_of_attention_are_compared_with_plain_attention(ablation):
    study, _ = ablation
    result = study("attention", "--seeds", "1")
    assert [(row["setting"], row["attn"]) for row in result["rows"]] == [
        ("plain", "plain"), ("the paper's", "diff"), ("without head norm", "diff"), ("version 2", "diff_v2")
    ]  # fmt: skip
    mean, half, n = result["differences"]["version 2"]
    accuracy = {row["setting"]: row["mean"] for row in result["rows"]}
    assert (mean, half, n) == (pytest.approx(accuracy["version 2"] - accuracy["plain"]), None, 1)
    assert "plain" not in result["differences"]


def test_short_names_stand_for_options_and_what_is_given_stays(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    cifar = recipe("train_cifar")
    named = lambda *arguments: cifar.named_dataset(parse_config(cifar.CifarConfig, list(arguments)))  # noqa: E731
    assert (named("--dataset", "cifar100").dataset, named("--dataset", "cifar100").label_column) == (
        "uoft-cs/cifar100", "fine_label"
    )  # fmt: skip
    assert (named("--dataset", "bach").dataset, named("--dataset", "bach").test_share) == ("1aurent/BACH", 0.25)
    assert named("--dataset", "bach", "--test-share", "0.5").test_share == 0.5
    assert named("--dataset", "some/where").dataset == "some/where"


def test_every_study_has_settings_that_parse(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    ablate = recipe("ablate")
    assert set(ablate.STUDIES) == set(ablate.Study.__args__)
    for name in ablate.STUDIES:
        runs = ablate.planned(ablate.AblateConfig(study=name, seeds=1))
        folders = [config.output for _, config in runs]
        assert len(set(folders)) == len(folders), name


def test_scaling_has_a_point_a_size_seed_and_kind_of_attention(image_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    arguments = ["scaling_laws.py", "--dataset", str(image_folder), "--output", str(tmp_path / "runs"), "--seeds", "1"]
    short = ["--max-steps", "1", "--batch-size", "8", "--model-kwargs", "img_size=16", "patch_size=8"]
    monkeypatch.setattr(sys, "argv", [*arguments, *short, "--sizes", "32x1", "64x1", "32x2", "64x2"])
    result = recipe("scaling_laws").main()
    assert [(p["size"], p["attn"]) for p in result["points"]] == [
        (size, attn) for size in ("32x1", "64x1", "32x2", "64x2") for attn in ("diff", "plain")
    ]
    flops = {(p["size"], p["attn"]): p["flops"] for p in result["points"]}
    assert all(flops[size, "diff"] == flops[size, "plain"] for size, _ in flops)  # matched
    assert {attn: list(laws) for attn, laws in result["laws"].items()} == {
        "diff": ["parameters", "flops"],
        "plain": ["parameters", "flops"],
    }
    assert result["over_plain"]["diff"]["flops"]["interval"] is None  # of one seed
    assert (tmp_path / "runs" / "scaling.png").exists()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("48x2", "--sizes 48x2: the width must be a multiple of 32"),
        ("huge", "--sizes huge is not"),
        ("32x0", "--sizes 32x0 is not"),
        ("32x2 32x2", "--sizes 32x2 32x2: give one or more, each once"),
        ("", "--sizes : give one or more"),
        ("vit_tiny_patch16_224", "--sizes vit_tiny_patch16_224 has no plain twin"),
    ],
)
def test_sizes_that_are_none_are_refused(sizes, message, monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    with pytest.raises(InputError, match=message):
        parse_config(recipe("scaling_laws").ScalingConfig, ["--sizes", *sizes.split()])


def test_a_model_beside_sizes_that_are_models_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    options = ["--model", "diffvit_nano", "--sizes"]
    with pytest.raises(InputError, match="--model diffvit_nano has no effect beside --sizes"):
        parse_config(recipe("scaling_laws").ScalingConfig, [*options, "diffvit_micro_patch8_32"])
    parse_config(recipe("scaling_laws").ScalingConfig, [*options, "32x1"])


def test_what_the_sizes_vary_is_no_argument_of_the_model(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    with pytest.raises(InputError, match=r"--model-kwargs depth=\.\.\. is what --sizes varies"):
        parse_config(recipe("scaling_laws").ScalingConfig, ["--model-kwargs", "depth=3"])


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
        "--model-kwargs depth=3 --study size",
        "--attn diff_v2 --study attention",
        "--lambda-warmup 2 --study attention",
        "--model-kwargs branch_dims=(16,16) --study attention",
        "--model diffvit_tiny_patch16 --study lambda",
    ],
)
def test_an_ablation_refuses_what_it_sets_itself_and_models_that_do_not_suit(options, monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    options = options.split()
    with pytest.raises(InputError, match=options[0] + (f" {options[1]}".split("=")[0] if options[1:] else "")):
        parse_config(recipe("ablate").AblateConfig, options)


def test_a_study_with_several_processes_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="a study is one process"):
        recipe("ablate").AblateConfig()


def test_patches_that_do_not_divide_the_image_are_refused(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    config = recipe("ablate").AblateConfig
    with pytest.raises(InputError, match="8 x 8 pixels do not divide the 28 of --model diffvit_nano"):
        config(study="patch_size", model="diffvit_nano")
    with pytest.raises(InputError, match="--model diffvit_foo is not"):
        config(study="patch_size", model="diffvit_foo")
    with pytest.raises(InputError, match="4 x 4 pixels do not divide the 30 of"):
        config(study="patch_size", model="diffvit_nano", model_kwargs=("img_size=(30,32)",))
    with pytest.raises(InputError, match=r"img_size=.* is no size"):
        config(study="patch_size", model="diffvit_nano", model_kwargs=("img_size=abc",))
    config(study="patch_size", model="diffvit_nano", model_kwargs=("img_size=(32,32)",))
    config(study="patch_size", model="diffvit_nano", model_kwargs=("img_size=32",))


def test_a_study_does_not_write_over_another_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    (tmp_path / "20-wrong-labels-diff-0").mkdir()
    (tmp_path / "20-wrong-labels-diff-0" / "config.yaml").touch()
    config = recipe("ablate").AblateConfig
    config(study="noise", output=str(tmp_path))
    with pytest.raises(InputError, match="holds 20-wrong-labels-diff-0, no run of this study: give another folder"):
        config(study="size", output=str(tmp_path))
    scaling = recipe("scaling_laws").ScalingConfig
    with pytest.raises(InputError, match="holds 20-wrong-labels-diff-0, no run of this study"):
        scaling(output=str(tmp_path))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "scaling.json").write_text("mine")
    for study in (config, scaling):
        with pytest.raises(InputError, match="own` is not empty"):
            study(output=str(tmp_path / "own"))


def test_a_training_that_diverges_leaves_the_others_their_table(ablation, monkeypatch):
    study, folder = ablation
    fit = Trainer.fit

    def diverge(trainer, checkpoint=None):
        if getattr(trainer.net, "attn", "") == "diff_v2" or trainer.config.seed == 1:
            raise DivergedError("the loss is nan")
        return fit(trainer, checkpoint)

    monkeypatch.setattr(Trainer, "fit", diverge)
    with pytest.raises(InputError, match="5 of 8 trainings diverged, and the results are of the others: lower --lr"):
        study("attention")
    result = json.loads((folder / "study.json").read_text())
    assert [(row["setting"], row["seeds"]) for row in result["rows"]] == [
        ("plain", 1), ("the paper's", 1), ("without head norm", 1)
    ]  # fmt: skip
    assert set(result["differences"]) == {"the paper's", "without head norm"}
    assert len((folder / "study.csv").read_text().splitlines()) == 1 + 3


def test_a_study_that_a_signal_ends_says_how_to_go_on_and_keeps_its_rows(ablation, monkeypatch, capsys):
    study, folder = ablation
    fit = Trainer.fit

    def end(trainer, checkpoint=None):
        if trainer.net.attn == "plain":
            return fit(trainer, checkpoint)
        raise SystemExit(143)

    monkeypatch.setattr(Trainer, "fit", end)
    with pytest.raises(SystemExit):
        study("attention")
    assert "the study goes on with the command that began it" in capsys.readouterr().err
    assert len((folder / "study.csv").read_text().splitlines()) == 1 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ablate.py --study attention --model-kwargs qk_norm=True", "attn='diff_v2' has no norms"),
        ("ablate.py --study pos_embed --model-kwargs embed_dim=42 num_heads=3", "not embed_dim=42"),
        ("scaling_laws.py --sizes 64x2 32x1 --freeze 2", "--freeze 2: .* has 1 blocks"),
    ],
)
def test_a_setting_that_cannot_be_made_is_refused_before_the_first_training(
    arguments, message, image_folder, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(RECIPES)
    name, *options = arguments.split()
    study = [name, *options, "--dataset", str(image_folder), "--output", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", study)
    with pytest.raises(InputError, match=message):
        recipe(name.removesuffix(".py")).main()
    assert not (tmp_path / "runs").exists()


def test_a_study_of_version_2_stands_beside_plain_attention_too(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    ablate = recipe("ablate")
    runs = ablate.planned(ablate.AblateConfig(study="noise", attn="diff_v2", seeds=1, output="~/runs"))
    assert [config.attn for _, config in runs] == ["diff_v2", "plain"] * 5
    assert len({config.output for _, config in runs}) == len(runs)
    assert all(Path(config.output).parent == Path.home() / "runs" for _, config in runs)


class ShortTrainer(Trainer):
    """One epoch, whatever was asked."""

    def __init__(self, config, *args):
        super().__init__(dataclasses.replace(config, epochs=1, warmup_epochs=0.5), *args)


def test_the_demo_converts_and_fine_tunes_and_compares(tmp_path, monkeypatch, capsys):
    pets = recipe("finetune_pets")
    monkeypatch.setattr(pets.training, "Trainer", ShortTrainer)
    result = pets.demo(parse_config(pets.PetsConfig, ["--demo", "--output", str(tmp_path / "demo")]))
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"source", "diff", "plain"}
    assert result["conversion"]["method"] == "svd"
    assert {"source_accuracy", "converted_accuracy", "test_accuracy", "plain_twin_accuracy"} <= set(result)
    assert "Diff-ViT, fine-tuned on" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--conversion", "calibrated"), ("--resume", "auto"), ("--dry-run", "")])
def test_the_demo_refuses_what_it_has_no_use_for(option, tmp_path):
    pets = recipe("finetune_pets")
    arguments = [part for part in option if part]
    with pytest.raises(InputError, match=" ".join(option)):
        pets.demo(parse_config(pets.PetsConfig, ["--demo", *arguments, "--output", str(tmp_path / "demo")]))


@pytest.mark.parametrize("preset", sorted((RECIPES / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_parses(preset):
    text = preset.read_text()
    name = "train_cifar" if "recipes/train_cifar.py" in text else "finetune_pets"
    module = recipe(name)
    config_type = module.CifarConfig if name == "train_cifar" else module.PetsConfig
    parse_config(config_type, ["--config", str(preset)])


def test_small_images_train_from_scratch(stream_folder, tmp_path, monkeypatch):
    arguments = ["train_cifar.py", "--dataset", str(stream_folder), "--epochs", "1", "--batch-size", "8"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(tmp_path / "run"), "--max-steps", "2"])
    result = recipe("train_cifar").main()
    assert result["model"] == "diffvit_micro_patch4_32"
    assert result["conversion"] is None
    assert (result["updates"], result["test_images"]) == (2, 30)


def test_conversions_are_compared_on_real_weights(parquet_folder, hub_cache, monkeypatch, capsys):
    options = ["--dataset", str(parquet_folder), "--images", "4", "--calibration-images", "8"]
    monkeypatch.setattr(sys, "argv", ["compare", *options])
    result = json.loads(json.dumps(recipe("compare_conversions").main()))
    assert result["mirror, version 2"]["agreement"] == 1.0
    assert result["mirror, version 2"]["output_error"] < 1e-5
    assert "no pairs" in capsys.readouterr().err


def test_a_source_that_cannot_be_compared_is_one_error(parquet_folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", "--dataset", str(parquet_folder), "--source", "vit_tinny"])
    with pytest.raises(InputError, match=r"--source vit_tinny"):
        recipe("compare_conversions").main()


def test_the_benchmark_times_every_model_and_keeps_every_time(tmp_path, monkeypatch, capsys):
    out = tmp_path / "times.json"
    options = "--img-sizes 32 --batch-size 1 --repeats 2 --precisions fp32 --output"
    monkeypatch.setattr(sys, "argv", ["benchmark_attention", *options.split(), str(out)])
    rows = recipe("benchmark_attention").main()["rows"]
    written = json.loads(out.read_text())
    assert [(row["model"], row["step"]) for row in rows] == [(row["model"], row["step"]) for row in written["rows"]]
    assert len(rows) == 5 * 2
    assert all(len(row["seconds"]) == 2 for row in written["rows"])
    assert "differ from those of the explicit maps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model vit_tiny_patch16_224", "--model vit_tiny_patch16_224 is none of our variants"),
        ("--batch-size 0", "--batch-size 0 must be at least 1"),
        ("--device tpu9", "--device tpu9"),
        ("--img-sizes 100", "--img-sizes 100"),
        ("--output nowhere/times.json", "--output nowhere/times.json: there is no folder nowhere: make it first"),
    ],
)
def test_a_benchmark_that_cannot_run_is_one_error(options, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark_attention", *options.split()])
    with pytest.raises(InputError, match=message):
        recipe("benchmark_attention").main()


@pytest.fixture
def weights(tmp_path, tiny_model):
    """Function: name, keyword arguments -> a folder of the weights of a tiny model."""

    def make(name, **kwargs):
        save_pretrained(tiny_model(**kwargs), tmp_path / name, ["cat", "dog", "owl"])
        return tmp_path / name

    return make


@pytest.fixture
def photographs(image_folder):
    return [str(path) for path in sorted((image_folder / "test" / "cat").glob("*.png"))[:2]]


def visualized(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["visualize_attention.py", *map(str, arguments)])
    return recipe("visualize_attention").main()


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({}, {"lambda", "cat-00-branches", "cat-01-branches", "positions"}),
        ({"attn": "diff_v2", "pos_embed": "sincos"}, {"lambda", "cat-00-branches", "cat-01-branches", "positions"}),
        ({"attn": "plain", "pos_embed": "none"}, set()),
        ({"class_token": False, "global_pool": "avg", "num_classes": 0}, {"lambda", "cat-00-branches",
                                                                         "cat-01-branches", "positions"}),
    ],
)  # fmt: skip
def test_every_picture_has_its_numbers_beside_it(weights, photographs, tmp_path, monkeypatch, settings, more):
    folder = tmp_path / "pictures"
    result = visualized(monkeypatch, *photographs, "--model", weights("net", **settings), "--output", folder)
    expected = {"rollout", "statistics"} | more
    expected |= {f"cat-0{i}-{kind}" for i in (0, 1) for kind in ("heads", "layers", "last-layer")}
    assert {path.stem for path in folder.glob("*.png")} == {path.stem for path in folder.glob("*.npz")} == expected
    assert len(result["predictions"]["net"]) == 2
    assert set(result["predictions"]["net"][0].split()[:1]) <= {"cat", "dog", "owl"}
    numbers = np.load(folder / "cat-00-heads.npz")["maps"]
    assert numbers.shape == (2, 2, 2, 2)


def test_models_are_compared_on_the_same_images(weights, photographs, tmp_path, monkeypatch):
    first, second, headless = weights("first"), weights("second", attn="plain"), weights("third", num_classes=0)
    folder = tmp_path / "pictures"
    visualized(monkeypatch, *photographs, "--model", first, "--compare", second, headless, "--output", folder)
    compared = np.load(folder / "compare.npz")
    assert set(compared) == {"rollout\nfirst", "rollout\nsecond", "rollout\nthird", "for its prediction\nfirst",
                             "for its prediction\nsecond"}  # fmt: skip
    assert (folder / "rollout-1.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "image nowhere.png is not a file"),
        (["{}", "{}"], "two have one name"),
        (["{}", "--model", "vit_tinyest"], "--model vit_tinyest is not known to timm"),
        (["{}", "--compare", "vit_tinyest"], "--compare vit_tinyest is not known to timm"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(photographs, monkeypatch, arguments, message, tmp_path):
    arguments = [argument.format(photographs[0]) for argument in arguments]
    with pytest.raises(InputError, match=message):
        visualized(monkeypatch, *arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_without_attention_is_named(photographs, monkeypatch, tmp_path):
    save_pretrained(timm.create_model("test_convnext", num_classes=3), tmp_path / "net")
    with pytest.raises(InputError, match=r"--model .*net: ConvNeXt is not a timm VisionTransformer"):
        visualized(monkeypatch, photographs[0], "--model", tmp_path / "net", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_faithfulness_has_an_area_a_model_kind_of_curve_and_way(weights, image_folder, tmp_path, monkeypatch):
    models = [str(weights("diff")), str(weights("plain", attn="plain"))]
    arguments = ["--dataset", str(image_folder), "--images", "5", "--steps", "4", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["faithfulness.py", "--models", *models, *arguments])
    areas = recipe("faithfulness").main()["areas"]
    assert set(areas) == set(models)
    for kinds in areas.values():
        assert set(kinds) == {"deletion", "insertion"}
        for ways in kinds.values():
            assert len(ways) == 4
            assert all(0 < way["area"] < 1 and way["images"] == 5 for way in ways.values())
    assert np.load(tmp_path / "out" / "faithfulness-1.npz")["deletion, rollout"].shape == (5, 5)


def test_more_images_than_there_are_cannot_be_faithful(weights, image_folder, tmp_path, monkeypatch):
    arguments = ["--models", str(weights("net")), "--dataset", str(image_folder), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["faithfulness.py", *arguments])
    with pytest.raises(InputError, match=r"--images 100: .* has 18 to test on"):
        recipe("faithfulness").main()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "arguments"), [("faithfulness", ["--models", "net"]), ("compare_clip_resnet", ["--convert", "svd"])]
)
def test_a_device_that_is_not_there_is_one_line(name, arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys, "argv", [f"{name}.py", *arguments, "--device", "cuda:9", "--output", str(tmp_path / "out")]
    )
    with pytest.raises(InputError, match=r"^--device cuda:9: "):
        recipe(name).main()


def compared(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare_clip_resnet.py", *map(str, arguments)])
    return recipe("compare_clip_resnet").main()


def test_clip_its_mirrored_twin_and_a_trained_network_are_compared(
    clip_folder, weights, image_folder, tmp_path, monkeypatch
):
    result = compared(
        monkeypatch, "--clip", clip_folder, "--convert", "mirror", "--supervised", weights("net"),
        "--dataset", image_folder, "--output", tmp_path / "out"
    )  # fmt: skip
    assert [(row["model"], row["images"]) for row in result["rows"]] == [
        (clip_folder.name, 18), (f"{clip_folder.name}, differential", 18), ("net", 18)
    ]  # fmt: skip
    assert result["agreement"][0][1] == 1.0  # version 2 starts as exactly the source
    assert set(result["alone_right"]) == {clip_folder.name, "net"}
    assert all(row["top5"] == 1.0 for row in result["rows"])  # of three classes
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "agreement.png", "first-alone-right.png", "last-alone-right.png", "result.json", "table.csv"
    }  # fmt: skip


def test_a_network_of_imagenet_is_asked_for_the_classes_that_it_knows(
    clip_folder, image_folder, tmp_path, monkeypatch, capsys
):
    save_pretrained(timm.create_model("test_vit", num_classes=1000), tmp_path / "net")
    arguments = ("--clip", clip_folder, "--supervised", tmp_path / "net", "--dataset", image_folder)
    with pytest.raises(InputError, match=r"none of the classes \(cat, dog, owl, ...\)"):
        compared(monkeypatch, *arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "map.yaml").write_text("cat: [281, 282]\ndog: [207]\n")
    result = compared(monkeypatch, *arguments, "--class-map", tmp_path / "map.yaml", "--output", tmp_path / "out")
    assert result["classes"] == 2
    assert [row["images"] for row in result["rows"]] == [12, 12]
    assert "counted on the 12 images of 2 classes that all know; not on those of owl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare --clip with: pass --supervised or --convert"),
        (["--convert", "mirror", "--templates", "nowhere.txt"], "--templates nowhere.txt is neither"),
        (["--supervised", "vit_tinyest"], "--supervised vit_tinyest is not known to timm"),
        (["--supervised", "{seven}", "--clip", "RN50:openai"], "the 7 classes of the network"),  # before CLIP loads
        (["--supervised", "{seven}"], "neither the dataset's 3 by name nor ImageNet's 1,000"),
        (["--convert", "mirror", "--output", "{used}"], "is not empty"),
    ],
)
def test_what_cannot_be_compared_is_one_line(clip_folder, image_folder, tmp_path, monkeypatch, arguments, message):
    save_pretrained(timm.create_model("test_vit", num_classes=7), tmp_path / "seven")
    places = {"seven": tmp_path / "seven", "used": tmp_path}
    arguments = [argument.format(**places) for argument in arguments]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        compared(monkeypatch, "--clip", clip_folder, "--dataset", image_folder, *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"seven"}


def test_a_small_clip_is_trained_saved_and_asked(image_folder, tmp_path, monkeypatch):
    folder = tmp_path / "clip"
    arguments = ["--dataset", str(image_folder), "--epochs", "2", "--batch-size", "8", "--output", str(folder)]
    monkeypatch.setattr(sys, "argv", ["train_small_clip.py", *arguments])
    result = recipe("train_small_clip").main()
    assert result["images"] == 32
    assert result["loss"] < 5
    rows = compared(
        monkeypatch, "--clip", folder, "--convert", "calibrated", "--calibration-images", "8", "--images", "9",
        "--dataset", image_folder, "--output", tmp_path / "out"
    )["rows"]  # fmt: skip
    assert [row["images"] for row in rows] == [9, 9]


def test_pairs_of_one_class_are_all_right_in_the_contrastive_loss():
    loss = recipe("train_small_clip").contrastive_loss
    eye = torch.eye(4)
    apart = loss(eye, eye, torch.arange(4), torch.tensor(100.0))
    assert apart < 1e-6
    images = eye[[0, 0, 1]]
    together = loss(images, images, torch.tensor([5, 5, 7]), torch.tensor(100.0))
    torch.testing.assert_close(together, torch.tensor(2 / 3 * 0.6931472), atol=1e-5, rtol=0)


def benchmarked(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    return recipe("benchmark").main()


def test_a_benchmark_has_a_row_a_model_precision_and_batch_size(weights, image_folder, tmp_path, monkeypatch):
    models = weights("first"), weights("second", attn="plain")
    rows = benchmarked(
        monkeypatch, "--model", *models, "test_vit", "--dataset", image_folder, "--images", 6, "--repeats", 2,
        "--batch-size", "1,3", "--output", tmp_path / "out"
    )["rows"]  # fmt: skip
    assert [(row["batch_size"], row["model"], row["precision"]) for row in rows] == [
        (size, model, precision)
        for size in (1, 3)
        for model in ("first", "second", "test_vit")
        for precision in ("fp32", "bf16")
    ]
    fp32, bf16 = rows[:2]
    assert (fp32["agreement"], fp32["largest_difference"]) == (1.0, 0.0)
    assert bf16["largest_difference"] > 0
    assert 0.45 < bf16["weights_mb"] / fp32["weights_mb"] < 0.55
    assert [row["accuracy"] is None for row in rows[:6]] == [False] * 4 + [True] * 2  # test_vit has no names
    assert all(0 < row["p50_ms"] <= row["p90_ms"] for row in rows)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"benchmark.csv", "benchmark.json", "benchmark.png"}


def test_clips_image_tower_is_timed_on_noise_and_fp16_on_a_cpu_is_said_to_be_emulated(tmp_path, monkeypatch, capsys):
    rows = benchmarked(
        monkeypatch, "--model", "clip:ViT-S-32-alt", "--precision", "fp32,fp16", "--batch-size", 1, "--images", 1,
        "--repeats", 1, "--output", tmp_path / "out"
    )["rows"]  # fmt: skip
    assert [row["model"] for row in rows] == ["clip:ViT-S-32-alt"] * 2
    said = capsys.readouterr().err
    assert "compared on noise" in said
    assert "fp16 on a CPU is emulated" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "clip:RN5"], "--model clip:RN5: open_clip knows no CLIP of that name"),
        (["--model", "vit_tinyest"], "--model vit_tinyest is not known to timm"),
        (["--model", "test_vit", "test_vit"], "name each once"),
        (["--model", "test_vit", "--precision", "bf16"], "--precision bf16 must be fp32"),
        (["--model", "test_vit", "--precision", "fp32,int4"], "--precision fp32,int4 must be"),
        (["--model", "test_vit", "--batch-size", "1,0"], "--batch-size 1,0 must be numbers from 1 on"),
        (["--model", "test_vit", "--batch-size", "1,8,1"], "--batch-size 1,8,1: give each once"),
        (["--model", "test_vit", "--precision", "fp32,bf16,bf16"], "--precision fp32,bf16,bf16: give each once"),
        (["--model", "test_vit", "--device", "cuda:9"], "--device cuda:9: "),
    ],
)
def test_a_benchmark_of_nothing_is_one_line(monkeypatch, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        benchmarked(monkeypatch, *arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
