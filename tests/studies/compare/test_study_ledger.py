"""The ledger of a study: what it has does not run again, and what is not of the protocol is not used."""

import dataclasses

import pytest
from study_fixtures import ledger, protocol, row, tuned

from diffvit_timm.errors import InputError
from diffvit_timm.studies.compare.ledger import Ledger
from diffvit_timm.studies.compare.protocol import Planned

ROWS = [("plain", "tune", 0.01, 100, 0.5), ("first", "test", 0.02, 0, 0.5, 0.25)]


def changed(study, **options):
    return dataclasses.replace(
        study, arms=tuple(dataclasses.replace(arm, train=arm.train.replace(**options)) for arm in study.arms)
    )


def test_a_ledger_is_read_as_it_was_written(tmp_path):
    study = protocol()
    rows = [row(study, *values) for values in ROWS]
    rows.append(row(study, "plain", "test", 0.01, 2, 0.0, 0.0, diverged=True, parameters=None, flops=None, images=""))
    ledger(study, tmp_path, rows)
    assert Ledger(tmp_path / "runs.csv", study).rows == rows
    assert list(Ledger(tmp_path / "runs.csv", study).finished) == [entry.planned for entry in rows]


def test_rows_of_other_options_are_kept_but_not_used_and_one_line_says_so(tmp_path, capsys):
    study = protocol()
    ledger(study, tmp_path, [row(study, *ROWS[0])])
    other = changed(study, epochs=9)
    found = Ledger(tmp_path / "runs.csv", other)
    assert not found.finished
    assert capsys.readouterr().err.endswith("1 of 1 runs have other options than this protocol and are not used\n")
    found.add(row(other, *ROWS[0]))
    assert len(Ledger(tmp_path / "runs.csv", study).rows) == 2
    assert len(Ledger(tmp_path / "runs.csv", study).finished) == 1


@pytest.mark.parametrize("options", [dict(workers=1), dict(dataset="elsewhere"), dict(keep_checkpoints=3)])
def test_options_that_change_no_number_do_not_change_the_checksum(options):
    study = protocol()
    run = Planned("plain", "tune", 0.01, 100)
    assert changed(study, **options).checksum(run) == study.checksum(run)


@pytest.mark.parametrize(
    "options", [dict(epochs=9), dict(model_kwargs=("depth=2",)), dict(precision="bf16"), dict(samples_per_class=10)]
)
def test_options_that_change_the_numbers_change_the_checksum(options):
    study = protocol()
    run = Planned("plain", "tune", 0.01, 100)
    assert changed(study, **options).checksum(run) != study.checksum(run)


def test_the_checksum_knows_rate_seed_attention_and_the_endpoint_of_a_test():
    study = protocol()
    run = Planned("plain", "test", 0.01, 0)
    others = [
        dataclasses.replace(run, rate=0.02),
        dataclasses.replace(run, seed=1),
        dataclasses.replace(run, arm="first"),
    ]
    sums = [study.checksum(run), *map(study.checksum, others), protocol(endpoint="corruption_accuracy").checksum(run)]
    assert len(set(sums)) == 5
    tune = dataclasses.replace(run, part="tune")
    assert protocol(endpoint="corruption_accuracy").checksum(tune) == study.checksum(tune)


def test_the_seed_draws_the_training_images_if_they_are_a_part():
    study = changed(protocol(), samples_per_class=10)
    config = study.config(Planned("plain", "test", 0.01, 3))
    assert (config.run.seed, config.data.sample_seed, config.optim.lr) == (3, 3, 0.01)
    assert protocol().config(Planned("plain", "test", 0.01, 3)).data.sample_seed == 0


def test_runs_on_other_images_are_refused(tmp_path):
    study = protocol()
    found = ledger(study, tmp_path, [row(study, *ROWS[0])])
    with pytest.raises(InputError, match="has runs on other validation or test images than `dataset` has now"):
        found.add(row(study, *ROWS[1], images="c-d"))
    assert len(Ledger(tmp_path / "runs.csv", study).rows) == 1


@pytest.mark.parametrize(
    "text",
    [
        "", "arm,part\nplain,tune\n", "HEAD\nplain,tune,x\n", "HEAD\n" + "," * 16 + "\n", "HEAD\n" + "," * 40 + "\n",
        'HEAD\n"plain', "HEAD\nplain,dance,0.1,1,0.5,,,,no,1,1,1,1.0,a,b,c,d\n", "\udcff",
        "HEAD\nplain,test,0.1,1,0.5,,,,no,1,1,1,1.0,a,b,c,d\n",
    ],
)  # fmt: skip
def test_a_damaged_ledger_is_one_error(tmp_path, text):
    study = protocol()
    ledger(study, tmp_path, tuned(study, "plain", {0.01: 0.5}))
    head = (tmp_path / "runs.csv").read_text().splitlines()[0]
    (tmp_path / "runs.csv").write_bytes(text.replace("HEAD", head).encode(errors="surrogateescape"))
    with pytest.raises(
        InputError, match=r"runs\.csv cannot be read .*: restore it from a copy, or use another `output`"
    ):
        Ledger(tmp_path / "runs.csv", study)


def test_a_run_on_other_images_is_refused_and_not_used(tmp_path):
    study = protocol()
    found = ledger(study, tmp_path, [row(study, *ROWS[0])])
    with pytest.raises(InputError, match="other validation or test images"):
        found.add(row(study, "first", "tune", 0.01, 100, 0.5, images="other"))
    assert len(found.finished) == len(found.rows) == 1


@pytest.mark.parametrize(
    "damage",
    [
        dict(val_accuracy=float("nan")),
        dict(val_accuracy=7.0),
        dict(rate=float("inf")),
        dict(seconds=-1.0),
        dict(seed=-1),
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_impossible_numbers_in_the_file_are_refused(tmp_path, damage):
    study = protocol()
    ledger(study, tmp_path, [dataclasses.replace(row(study, *ROWS[0]), **damage)])
    with pytest.raises(InputError, match="line 2"):
        Ledger(tmp_path / "runs.csv", study)
