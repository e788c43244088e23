"""diffvit study compare: from a protocol to a report, and refusals of everything that is wrong before a run begins."""

import concurrent.futures
import csv
import json
import random
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import yaml
from protocol_faults import protocol_faults

from diffvit_timm.cli.protocol import read_protocol
from diffvit_timm.errors import DivergedError, InputError
from diffvit_timm.output import claim_folder
from diffvit_timm.studies.compare import running, schedule
from diffvit_timm.training.model import check_source, check_variant
from diffvit_timm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn_figures")

RECIPES = Path(__file__).parents[2] / "recipes"
TRAIN = {
    "model": "diffvit_nano", "pretrained": False, "img_size": 16, "batch_size": 8, "max_steps": 2, "workers": 0,
    "model_kwargs": ["patch_size=8", "depth=1", "in_chans=3"],
}  # fmt: skip


@pytest.fixture
def protocol(tmp_path, image_folder):
    """Function: changes of the entries -> the path of a protocol of two arms, two rates and two test seeds."""

    def write(**changes):
        entries = {
            "title": "Two networks", "train": {**TRAIN, "dataset": str(image_folder)},
            "arms": {"plain": {"attn": "plain"}, "diff": {}}, "baseline": "plain", "rates": [1e-3, 2e-3, 4e-3],
            "tuning_seeds": [100], "test_seeds": [0, 1], **changes,
        }  # fmt: skip
        path = tmp_path / "protocol.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in entries.items() if v is not None}, sort_keys=False))
        return path

    return write


@pytest.fixture
def quick(monkeypatch):
    """Trainings without a training: the accuracy is highest at the rate 2e-3. The list has their arms and seeds."""
    done = []

    def fit(trainer, checkpoint=None):
        from diffvit_timm.models.pretrained import save_pretrained

        config = trainer.config
        done.append((trainer.learner.net.attn, config.optim.lr, config.run.seed))
        save_pretrained(trainer.learner.net, trainer.output / "best", trainer.splits.class_names)
        right = 0.8 - abs(config.optim.lr - 2e-3) * 100
        return {**trainer.test(), "val_accuracy": right, "updates": 2, "seconds": 1.0}

    monkeypatch.setattr(Trainer, "fit", fit)
    return done


def rows_of(folder):
    with (folder / "runs.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_study_tunes_tests_and_reports_and_runs_nothing_twice(diffvit, protocol, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "MAX_EXTENSIONS", 0)
    tested, test_scores = [], Trainer.test_scores
    monkeypatch.setattr(Trainer, "test_scores", lambda self: tested.append(self) or test_scores(self))
    output = tmp_path / "study"
    result = diffvit("study", "compare", protocol(), "--output", output)
    assert len(tested) == 4  # the test runs only
    assert result["missing"] == {"tune": 0, "test": 0}
    assert set(result["arms"]) == {"plain", "diff"}
    assert "n = 2" in result["arms"]["diff"]
    files = {path.name for path in output.iterdir()}
    assert files == {"protocol.yaml", "runs.csv", "report.md", "study.json", "rates.png", "differences.png"}
    rows = rows_of(output)
    assert [(row["arm"], row["seed"]) for row in rows if row["part"] == "test"] == [
        ("plain", "0"), ("diff", "0"), ("plain", "1"), ("diff", "1")
    ]  # fmt: skip
    assert all((row["endpoint"] == "") == (row["part"] == "tune") for row in rows)  # no test image chooses a rate
    assert all(int(row["parameters"]) > 0 and int(row["flops"]) > 0 for row in rows)
    monkeypatch.setattr(Trainer, "fit", None)  # no training may begin
    shutil.copy(output / "runs.csv", tmp_path / "published.csv")
    assert diffvit("study", "compare", protocol(), "--output", output) == result
    # A ledger that was published is continued in another folder.
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "published.csv", tmp_path / "other" / "runs.csv")
    again = diffvit("study", "compare", protocol(), "--output", tmp_path / "other")
    assert again["arms"] == result["arms"]


def test_two_processes_give_the_rows_of_one(diffvit, protocol, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "MAX_EXTENSIONS", 0)  # two runs, one per process
    options = ["study", "compare", protocol(rates=[1e-3, 2e-3]), "--part", "tune", "--arms", "plain"]
    alone = diffvit(*options, "--output", tmp_path / "alone")
    together = diffvit(*options, "--output", tmp_path / "together", "--processes", "2")
    assert len(rows_of(tmp_path / "alone")) == len(rows_of(tmp_path / "together")) == 2
    assert together["missing"] == alone["missing"]
    assert all(row["hardware"].endswith(", 1 threads") for row in rows_of(tmp_path / "together"))
    rows = {(row["arm"], row["rate"]): row["val_accuracy"] for row in rows_of(tmp_path / "together")}
    for row in rows_of(tmp_path / "alone"):
        assert rows[row["arm"], row["rate"]] == row["val_accuracy"]


def test_a_process_that_dies_is_one_line(refusal, protocol, tmp_path, monkeypatch):
    class Broken(concurrent.futures.Executor):
        def submit(self, *arguments):
            raise BrokenProcessPool("a process was terminated abruptly")

    monkeypatch.setattr(running, "_executor", lambda processes: Broken())
    said = refusal("study", "compare", protocol(), "--output", tmp_path / "study", "--processes", "2")
    assert said.startswith("a process of --processes 2 died, perhaps because the memory is too small: lower it")


def test_the_parts_run_one_after_the_other(diffvit, refusal, protocol, tmp_path, quick):
    output = tmp_path / "study"
    said = refusal("study", "compare", protocol(), "--output", output, "--part", "test")
    assert "--part test needs the best learning rates, but 6 runs that choose them are missing" in said
    assert said.endswith("run --part tune first")
    diffvit("study", "compare", protocol(), "--output", output, "--part", "tune", "--arms", "diff")
    assert [run[0] for run in quick] == ["diff"] * 3
    diffvit("study", "compare", protocol(), "--output", output, "--part", "test", "--arms", "diff")
    assert quick[3:] == [("diff", 2e-3, 0), ("diff", 2e-3, 1)]
    diffvit("study", "compare", protocol(), "--output", output, "--keep-runs")
    assert len(quick) == 3 + 2 + 3 + 2
    assert len(list((output / "runs").iterdir())) == 5  # those of this call
    report = diffvit("study", "compare", protocol(), "--output", output, "--part", "report")
    assert report["missing"] == {"tune": 0, "test": 0}


def test_no_run_begins_when_the_minutes_are_over(diffvit, protocol, tmp_path, quick, capsys):
    result = diffvit("study", "compare", protocol(), "--output", tmp_path / "study", "--minutes", "1e-30")
    assert not quick
    assert result["arms"] is not None


def test_a_run_that_is_ended_leaves_no_row_and_the_same_command_continues(
    diffvit, protocol, tmp_path, quick, monkeypatch
):
    output, fit = tmp_path / "study", Trainer.fit

    def end(trainer, checkpoint=None):
        if len(quick) == 2:
            raise SystemExit(143)
        return fit(trainer, checkpoint)

    monkeypatch.setattr(Trainer, "fit", end)
    with pytest.raises(SystemExit):
        diffvit("study", "compare", protocol(), "--output", output)
    assert len(rows_of(output)) == 2
    assert (output / "report.md").is_file()
    monkeypatch.setattr(Trainer, "fit", fit)
    diffvit("study", "compare", protocol(), "--output", output)
    assert len(quick) == len(set(quick)) == 6 + 4


def test_a_run_that_diverges_counts_as_zero(diffvit, protocol, tmp_path, quick, monkeypatch):
    fit = Trainer.fit

    def diverge(trainer, checkpoint=None):
        if trainer.config.optim.lr > 3e-3:
            raise DivergedError("the loss is nan")
        return fit(trainer, checkpoint)

    monkeypatch.setattr(Trainer, "fit", diverge)
    diffvit("study", "compare", protocol(), "--output", tmp_path / "study")
    rows = rows_of(tmp_path / "study")
    assert [row["val_accuracy"] for row in rows if row["diverged"] == "yes"] == ["0.0", "0.0"]
    assert {row["rate"] for row in rows if row["part"] == "test"} == {"0.002"}


def test_the_endpoint_can_be_the_accuracy_on_corrupted_images(diffvit, protocol, tmp_path, quick):
    path = protocol(endpoint="corruption_accuracy", corruption_images=3)
    diffvit("study", "compare", path, "--output", tmp_path / "study")
    tests = [row for row in rows_of(tmp_path / "study") if row["part"] == "test"]
    assert all(0 <= float(row["endpoint"]) <= 1 for row in tests)
    assert any(row["endpoint"] != row["test_accuracy"] for row in tests)
    assert "mean accuracy on corrupted test images" in (tmp_path / "study" / "report.md").read_text()


def test_more_images_to_corrupt_than_there_are_are_refused_before_the_first_run(refusal, protocol, tmp_path):
    path = protocol(endpoint="corruption_accuracy", corruption_images=19)
    said = refusal("study", "compare", path, "--output", tmp_path / "study")
    assert said == "corruption_images=19 exceeds the 18 test images"
    assert not (tmp_path / "study").exists()


def test_a_folder_that_another_study_uses_is_refused(refusal, protocol, tmp_path, quick):
    with claim_folder(tmp_path / "study"):
        assert "--output" in refusal("study", "compare", protocol(), "--output", tmp_path / "study")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    assert "is not empty" in refusal("study", "compare", protocol(), "--output", tmp_path / "full")
    assert not quick


def test_the_arguments_of_the_model_are_added_to_the_shared_ones(protocol):
    arms = {"plain": {"attn": "plain"}, "wide": {"attn": "plain", "model_kwargs": ["mlp_ratio=3", "depth=2"]}}
    wide = read_protocol(str(protocol(arms=arms))).arm("wide").train.model
    assert wide.model_kwargs == ("patch_size=8", "depth=2", "in_chans=3", "mlp_ratio=3")


def test_an_arm_may_have_rates_of_its_own_and_options_on_the_command_line_give_the_dataset(protocol):
    arms = {"plain": {"attn": "plain"}, "diff": {"rates": [0.5, 1]}, "empty": None}
    study = read_protocol(str(protocol(arms=arms)), dataset="elsewhere")
    assert [arm.rates for arm in study.arms] == [(1e-3, 2e-3, 4e-3), (0.5, 1.0), (1e-3, 2e-3, 4e-3)]
    assert {arm.train.data.dataset for arm in study.arms} == {"elsewhere"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "pain"}, "baseline=pain is not an arm: choose one of plain, diff"),
        ({"baseline": None}, "has no baseline: add it"),
        ({"margins": 1}, "margins is not a known entry: did you mean margin?"),
        ({"test_seeds": [0, 100]}, "test_seeds and tuning_seeds share the seed 100"),
        ({"test_seeds": [0, 0]}, "test_seeds=0 0 names a seed twice"),
        ({"test_seeds": [0]}, "test_seeds=0 has no spread"),
        ({"tuning_seeds": []}, "tuning_seeds= is empty"),
        ({"tuning_seeds": [-1]}, "tuning_seeds=-1 must be whole numbers"),
        ({"tuning_seeds": ["a"]}, "tuning_seeds must be a list of whole numbers"),
        ({"tuning_seeds": [2**40]}, "tuning_seeds"),
        ({"rates": [0, 1]}, "rates=0 1 of the arm plain must be finite numbers above 0"),
        ({"rates": [1, 0.5]}, "rates=1 0.5 of the arm plain must be in ascending order"),
        ({"rates": [1]}, "must be two different learning rates or more"),
        ({"rates": "fast"}, "rates must be a list of numbers"),
        ({"rates": [1, "inf"]}, "must be finite numbers above 0"),
        ({"rates": [1, float("nan")]}, "rates must be a list of numbers"),
        ({"margin": 0}, "margin=0.0 must be a number of points above 0"),
        ({"margin": [1]}, "margin must be a number"),
        ({"endpoint": "loss"}, "endpoint must be one of test_accuracy, corruption_accuracy"),
        ({"corruption_images": 5}, "corruption_images=5 has no effect without endpoint=corruption_accuracy"),
        ({"title": [1]}, "title must be a text"),
        ({"title": ""}, "title is empty"),
        ({"train": 3}, "train is not a mapping"),
        ({"arms": ["a", "b"]}, "arms is not a mapping of names to options"),
        ({"arms": {"plain": {}}}, "a comparison needs two arms or more"),
        ({"arms": {"plain": {}, "b": 3}}, "arms: b is not a mapping"),
        ({"arms": {"plain": {}, "b": {"attention": "diff"}}}, "arms: b: attention is not a known entry"),
        ({"arms": {"plain": {}, "b": {"attn": "dif"}}}, "arms: b: "),
        ({"arms": {"plain": {}, "b": {"lr": 1}}}, "arms: b: lr is chosen from rates: leave it out"),
        ({"arms": {"plain": {}, "b": {"seed": 1}}}, "arms: b: seed is set by tuning_seeds and test_seeds: leave"),
        ({"arms": {"plain": {}, "b": {"dataset": "x"}}}, "arms: b: dataset belongs in train"),
        ({"arms": {"plain": {}, "b": {"epochs": 0}}}, "arms: b: epochs=0 must be at least 1"),
        ({"arms": {"plain": {}, "b": {"rates": [1]}}}, "rates=1 of the arm b must be two different"),
        ({"arms": {"plain": {}, "b": {"attn": "gated", "pretrained": True, "model": "diffvit_tiny_patch16"}}},
         "the arm b: attn=gated has no pretrained weights"),
        ({"arms": {"plain": {}, "b": {"model_kwargs": ["depth=x"]}}}, "the arm b: "),
        ({"arms": {"plain": {}, "b": {"model": "diffvit_nanno"}}}, "the arm b: model=diffvit_nanno"),
    ],
)  # fmt: skip
def test_a_wrong_protocol_is_one_line_and_leaves_nothing(changes, message, refusal, protocol, tmp_path, quick):
    said = refusal("study", "compare", protocol(**changes), "--output", tmp_path / "study")
    assert message in said
    assert not (tmp_path / "study").exists()
    assert not quick


@pytest.mark.parametrize("text", ["- a", "3", "", "a: [", "a: &x [*x]", "'\\0': 1", "? [a]\n: 1", "\udcff: 1"])
def test_a_file_that_is_no_mapping_is_one_line(text, refusal, tmp_path):
    (tmp_path / "odd.yaml").write_bytes(text.encode(errors="surrogateescape"))
    refusal("study", "compare", tmp_path / "odd.yaml", "--output", tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "dif"], "--arms dif is not an arm of"),
        (["--minutes", "-1"], "--minutes -1.0 must not be negative"),
        (["--processes", "0"], "--processes 0 must be at least 1"),
        (["--part", "report"], "has no runs.csv: run the study first"),
    ],
)
def test_wrong_options_are_one_line(options, message, refusal, protocol, tmp_path, quick):
    assert message in refusal("study", "compare", protocol(), "--output", tmp_path / "study", *options)
    assert not (tmp_path / "study").exists()


def test_a_missing_file_is_one_line(refusal, tmp_path):
    said = refusal("study", "compare", tmp_path / "none.yaml", "--output", tmp_path / "study")
    assert said == f"FILE {tmp_path}/none.yaml is not a file: check the path"


def test_two_processes_cannot_write_one_ledger(protocol, tmp_path, refusal, quick):
    with claim_folder(tmp_path / "study"):
        said = refusal("study", "compare", protocol(), "--output", tmp_path / "study")
    assert "in use" in said or "not empty" in said
    assert not quick


def test_the_numbers_of_the_last_line_are_those_of_the_file(diffvit, protocol, tmp_path, quick):
    result = diffvit("study", "compare", protocol(), "--output", tmp_path / "study")
    written = json.loads((tmp_path / "study" / "study.json").read_text())
    assert result["arms"] == {name: arm["sentence"] for name, arm in written["arms"].items()}
    assert written["arms"]["diff"]["lr"] == 2e-3


def test_wrong_entries_anywhere_are_one_error(tmp_path):
    messages = []
    for _, trial in protocol_faults(tmp_path, 60, random.Random(0)):
        try:
            trial()
        except InputError as error:
            messages.append(str(error))
    assert 30 < len(messages) < 60
    assert all(len(message.splitlines()) == 1 for message in messages)


@pytest.mark.parametrize("path", sorted((RECIPES / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_protocols_of_the_recipes_can_be_run(path):
    study = read_protocol(str(path))
    assert f"diffvit study compare recipes/studies/{path.name}" in path.read_text().splitlines()[0]
    assert len(study.test_seeds) >= 8
    assert study.baseline == "plain"
    for arm in study.arms:
        if not arm.train.model.pretrained:
            check_source(arm.train.model)
            check_variant(arm.train.model)


def test_an_invalid_arm_names_the_arm_also_from_python(protocol):
    with pytest.raises(InputError, match=r"^protocol\.yaml: arms: b: "):
        read_protocol(str(protocol(arms={"plain": {}, "b": {"mixup": -1}})))


def test_a_preset_comes_before_the_options_of_the_file(protocol, tmp_path):
    (tmp_path / "preset.yaml").write_text("epochs: 9\nbatch_size: 4\nlabel_smoothing: 0.2\n")
    arms = {"plain": {"attn": "plain"}, "diff": {"config": str(tmp_path / "preset.yaml"), "epochs": 3}}
    found = read_protocol(str(protocol(arms=arms)))
    optim = found.arm("diff").train.flat()
    assert (optim["epochs"], optim["batch_size"], optim["label_smoothing"]) == (3, 8, 0.2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("push_to_hub: me/x", "arms: diff: its preset has push_to_hub=me/x, which has no place in a study"),
        ("label_noise: 0.3", "arms: diff: its preset has label_noise=0.3, but all arms use the same images"),
    ],
)
def test_a_preset_cannot_bring_what_a_study_sets_or_other_images(protocol, tmp_path, line, message):
    (tmp_path / "preset.yaml").write_text(line + "\n")
    arms = {"plain": {"attn": "plain"}, "diff": {"config": str(tmp_path / "preset.yaml")}}
    with pytest.raises(InputError, match=message):
        read_protocol(str(protocol(arms=arms)))


@pytest.mark.parametrize(
    ("name", "options"), [("clutter", {"dataset": "here+clutter"}), ("bach", {"test_share": 0.25})]
)
def test_a_dataset_on_this_machine_keeps_what_the_short_name_says(protocol, name, options):
    found = read_protocol(str(protocol(train={**TRAIN, "dataset": name})), "here")
    own = found.arms[0].train.flat()
    assert options.items() <= own.items()
    assert own["dataset"].startswith("here")
