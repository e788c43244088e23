"""diffvit predict classifies folders in batches, writes a table, and goes on after a file that does not decode."""

import csv
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from diffvit_timm.cli import main
from diffvit_timm.models.pretrained import save_pretrained

COLOURS = ["red", "green", "blue", "white", "black", "orange", "grey"]


def photo(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").convert("RGB").resize((40, 30)).save(path)
    with Image.open(path) as image:
        Image.blend(image, Image.new("RGB", image.size, colour), 0.7).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Folder: seven photographs in folders, of which cat and owl are classes; a hidden one and a text file."""
    places = ["cat/1.png", "cat/2.png", "owl/3.png", "owl/old/4.png", "yak/5.png", "6.png", "7.jpg"]
    for place, colour in zip(places, COLOURS, strict=True):
        photo(tmp_path / "photos" / place, colour)
    photo(tmp_path / "photos" / ".hidden.png")
    (tmp_path / "photos" / "notes.txt").write_text("mine")
    return tmp_path / "photos"


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_gives_one_row_per_image_that_equals_the_prediction_of_one_image(photos, weights, tmp_path, diffvit):
    net, out = weights("net"), tmp_path / "out.csv"
    arguments = ["--model", net, "--top", 2]
    together = diffvit("predict", photos, *arguments, "--csv", out, "--json", "--batch-size", 3)
    rows = table(out)
    below = ["6.png", "7.jpg", "cat/1.png", "cat/2.png", "owl/3.png", "owl/old/4.png", "yak/5.png"]
    assert [row["path"] for row in rows] == [str(photos / name) for name in below] == list(together)
    assert [row["true_class"] for row in rows] == ["", "", "cat", "cat", "owl", "", ""]
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "true_class", "error"]
    for row in rows:
        (alone,) = diffvit("predict", row["path"], *arguments, "--json", "--batch-size", 1).values()
        assert [row["class"], row["class_2"]] == [name for name, _ in alone] == [n for n, _ in together[row["path"]]]
        shares = [float(row["probability"]), float(row["probability_2"])]
        assert shares == pytest.approx([share for _, share in alone], abs=2e-6)
        assert row["error"] == ""
    assert sorted(os.listdir(tmp_path)) == ["net", "out.csv", "photos"]


def test_processes_that_load_images_change_nothing(photos, weights, diffvit):
    arguments = ["predict", photos, "--model", weights("net"), "--json", "--batch-size", 2]
    assert diffvit(*arguments, "--workers", 2) == diffvit(*arguments)


def test_the_summary_counts_right_images_and_nothing_is_printed_beside_the_table(photos, weights, tmp_path, capsys):
    main(["predict", str(photos), "--model", str(weights("net")), "--csv", str(tmp_path / "out.csv")])
    printed = capsys.readouterr()
    right = sum(row["class"] == row["true_class"] for row in table(tmp_path / "out.csv"))
    assert printed.out == ""
    assert printed.err == (
        f"{tmp_path}/out.csv: 7 images with their predictions: {right} of 3 right, 4 of unknown class\n"
    )


def test_one_broken_file_of_many_is_named_and_the_others_are_classified(photos, weights, tmp_path, capsys):
    (photos / "cat" / "1.png").write_bytes(b"not an image")
    out, picture = tmp_path / "out.csv", tmp_path / "out.png"
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(photos), "--model", str(weights("net")), "--json", "--csv", str(out), "--picture",
              str(picture)])  # fmt: skip
    assert caught.value.code == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert lines[0].startswith(f"left out: {photos}/cat/1.png does not decode (")
    assert lines[-1].startswith("error: 1 of 7 images did not decode")
    assert len(json.loads(printed.out)) == 6
    broken = table(out)[2]
    assert (broken["path"], broken["class"], broken["true_class"]) == (str(photos / "cat" / "1.png"), "", "")
    assert broken["error"] == lines[0].removeprefix("left out: ")
    assert sum(bool(row["class"]) for row in table(out)) == 6
    assert picture.exists()


def test_a_single_broken_image_is_one_error_and_leaves_no_table(weights, tmp_path, refusal):
    (tmp_path / "broken.png").write_bytes(b"")
    said = refusal("predict", tmp_path / "broken.png", "--model", weights("net"), "--csv", tmp_path / "out.csv")
    assert said.startswith(f"{tmp_path}/broken.png does not decode")
    assert sorted(os.listdir(tmp_path)) == ["broken.png", "net"]


def test_an_image_that_is_named_twice_is_classified_once(photos, weights, diffvit):
    net = weights("net")
    assert list(diffvit("predict", photos / "owl" / "3.png", photos, "--model", net, "--json"))[:2] == [
        str(photos / "owl" / "3.png"), str(photos / "6.png")
    ]  # fmt: skip
    said = diffvit("predict", photos / "owl", photos / "owl" / "3.png", "--model", net, "--json")
    assert list(said) == [str(photos / "owl" / "3.png"), str(photos / "owl" / "old" / "4.png")]


def test_a_spreadsheet_computes_no_name_of_a_stranger(tiny_model, tmp_path, monkeypatch, capsys):
    save_pretrained(tiny_model(), tmp_path / "net", ["=1+2", "@SUM(A1)", "-1"])
    monkeypatch.chdir(tmp_path)
    photo(Path("=cmd.png"))
    main(["predict", "=cmd.png", "--model", str(tmp_path / "net"), "--csv", "out.csv"])
    (row,) = table(Path("out.csv"))
    assert row["path"] == "'=cmd.png"
    assert {row[name] for name in ("class", "class_2", "class_3")} == {"'=1+2", "'@SUM(A1)", "-1"}


def test_a_name_that_is_not_utf_8_is_written_with_escapes(weights, tmp_path, capsys):
    photo(tmp_path / "photos" / os.fsdecode(b"caf\xe9.png"))
    for options in (["--csv", str(tmp_path / "out.csv")], []):
        main(["predict", str(tmp_path / "photos"), "--model", str(weights("net")), *options])
    assert capsys.readouterr().out.splitlines()[0].endswith("caf\\udce9.png")
    assert table(tmp_path / "out.csv")[0]["path"].endswith("caf\\udce9.png")


def test_bad_input_is_one_line_before_the_network_is_loaded(photos, tmp_path, refusal):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.csv").write_text("mine")
    for number in range(60):
        photo(photos / f"more-{number}.png")
    for arguments, message in (
        ([tmp_path / "empty"], f"IMAGES {tmp_path}/empty has no images below it"),
        ([photos, "--batch-size", 0], "--batch-size 0 must be at least 1"),
        ([photos, "--workers", -1], "--workers -1 must be at least 0"),
        ([photos, "--csv", tmp_path / "mine.csv"], f"--csv {tmp_path}/mine.csv exists already: choose another file"),
        ([photos, "--csv", tmp_path / "out.txt"], "must be a CSV file: end its name with .csv"),
        ([photos, "--csv", tmp_path / "no" / "out.csv"], f"needs the folder {tmp_path}/no"),
        ([photos, "--picture", tmp_path / "out.png"], "shows at most 60 images, not 67: give fewer"),
    ):
        assert message in refusal("predict", *arguments, "--model", "no_such_network")
    assert (tmp_path / "mine.csv").read_text() == "mine"
