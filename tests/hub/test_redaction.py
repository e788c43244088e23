"""The published records of a run contain no local paths, and keep names on the Hub."""

import json

import pytest
import yaml

from diffvit_timm.errors import InputError
from diffvit_timm.hub.redaction import redacted_records, redacted_text


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/alice/data/pets", "pets"),
        ("~/pets/", "pets"),
        ("~", "folder"),
        ("/", "folder"),
        ("./runs/first", "first"),
        ("data/pets", "pets"),
        ("C:\\Users\\Alice\\pets", "pets"),
        ("/home/alice/My Pictures/cats and dogs", "cats and dogs"),
        ("local-dir:/home/alice/net", "net"),
        ("hf-hub:alice/net@v1", "hf-hub:alice/net@v1"),
        ("hf-hub:/home/alice/net", "net"),
        ("https://alice:secret@example.org", "example.org"),
        ("hf_abcdefghijklmnop", "hf_..."),
        ("vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("crop+flip", "crop+flip"),
    ],
)
def test_a_path_is_published_as_its_last_part(text, public):
    assert redacted_text(text) == public


@pytest.fixture
def write_records(tmp_path):
    """Function: option values, the command, other entries of environment.json -> run folder with these records."""

    def write(options, command="diffvit train", **environment):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
        (tmp_path / "environment.json").write_text(json.dumps({"command": command, **environment}))
        (tmp_path / "result.json").write_text(json.dumps({"model": options["model"], "test_split": "test/val"}))
        return tmp_path

    return write


def test_the_records_of_a_local_folder_hold_no_path(write_records):
    options = {
        "dataset": "/home/alice/pets", "model": "/home/alice/nets/first", "output": "~/runs/second", "lr": 0.1,
        "model_kwargs": ["checkpoint_path=/home/alice/x.pth", "depth=2"], "teacher": None, "push_to_hub": "alice/pets",
    }  # fmt: skip
    command = "train.py /home/alice/pets --output=~/runs/second --teacher '/home/alice/my net' --push-to-hub alice/pets"
    run = write_records(options, command, host="alices-laptop", cpus=2, data="/home/alice/pets")
    records = redacted_records(run)
    assert records.config == {
        "dataset": "pets", "model": "first", "output": "second", "lr": 0.1,
        "model_kwargs": ["checkpoint_path=x.pth", "depth=2"], "teacher": None, "push_to_hub": "alice/pets",
    }  # fmt: skip
    public = "train.py pets --output=second --teacher 'my net' --push-to-hub alice/pets"
    assert records.environment == {"command": public, "cpus": 2}
    assert records.result == {"model": "first", "test_split": "test/val"}
    assert records.dataset == "pets"
    assert records.hub_dataset is None


@pytest.mark.parametrize("name", ["timm/oxford-iiit-pet", "pets"])
def test_a_dataset_of_the_hub_keeps_its_name(write_records, name):
    run = write_records({"dataset": name, "model": "hf-hub:a/b"}, f"train.py {name} --seed 1", dataset_is_folder=False)
    records = redacted_records(run)
    assert records.hub_dataset == records.config["dataset"] == "timm/oxford-iiit-pet"
    assert records.dataset == "oxford-iiit-pet"
    assert records.environment["command"] == f"train.py {name} --seed 1"
    assert records.result["model"] == "hf-hub:a/b"


@pytest.mark.parametrize("name", ["data/pets", "pets", "/data/pets", "../pets"])
def test_a_folder_is_no_dataset_of_the_hub_even_if_it_is_gone(write_records, name):
    run = write_records({"dataset": name, "model": "m"}, f"train.py {name}", dataset_is_folder=True)
    records = redacted_records(run)
    assert records.hub_dataset is None
    assert records.config["dataset"] == "pets"
    assert records.environment["command"] == "train.py pets"


def test_a_run_that_did_not_record_it_is_judged_by_the_folders_of_now(write_records, monkeypatch):
    run = write_records({"dataset": "data/pets", "model": "m"})
    assert redacted_records(run).hub_dataset == "data/pets"
    (run / "data" / "pets").mkdir(parents=True)
    monkeypatch.chdir(run)
    assert redacted_records(run).hub_dataset is None


@pytest.mark.parametrize("name", ["a/b/c", "", ".", "..", "mnist/", "a b/c", 7, None])
def test_what_is_no_name_is_not_declared(write_records, name):
    assert redacted_records(write_records({"dataset": name, "model": "m"}, dataset_is_folder=False)).hub_dataset is None


def test_the_files_of_the_run_stay_as_they_are(write_records):
    run = write_records({"dataset": "/home/alice/pets", "model": "m"})
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    redacted_records(run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_command_with_unbalanced_quotes_holds_no_path_either(write_records):
    run = write_records({"dataset": "d", "model": "m"}, "train.py /home/alice/it's here")
    assert "alice" not in redacted_records(run).environment["command"]


def test_a_folder_of_weights_only_has_empty_records(tmp_path):
    records = redacted_records(tmp_path)
    assert (records.config, records.environment, records.result, records.dataset) == ({}, {}, {}, "")


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "result.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"a: [\x00", b"7"])
def test_a_damaged_record_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/{name} is damaged .*: restore it, or delete it$") as raised:
        redacted_records(tmp_path)
    assert "\n" not in str(raised.value)
