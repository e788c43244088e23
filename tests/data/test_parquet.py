"""The split of a parquet file is the one that its folder or its name says, and no file is in two."""

import io

import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffvit_timm.data.datasets import load_splits
from diffvit_timm.errors import InputError

ROWS = 20  # per file


def fill(root, *files, names=("cat", "dog")):
    """Write parquet files of 20 images each, whose red channel is the number of the file."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    for number, file in enumerate(files):
        images = []
        for row in range(ROWS):
            content = io.BytesIO()
            Image.new("RGB", (8, 8), (number, row, 0)).save(content, "png")
            images.append({"bytes": content.getvalue(), "path": None})
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        labels = [row % len(names) for row in range(ROWS)]
        Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(root / file)
    return root


def files_of(split):
    """Return the numbers of the files whose images are in a split."""
    return {Image.open(io.BytesIO(image["bytes"])).getpixel((0, 0))[0] for image in split["image"]}


def layout(root):
    splits = load_splits(str(root))
    return files_of(splits.train) | files_of(splits.val), files_of(splits.test)


@pytest.mark.parametrize(
    "files",
    [
        ("train.parquet", "test.parquet"),
        ("Train.parquet", "TEST.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("Training/0.parquet", "Testing/0.parquet"),
        ("train/test_scanner.parquet", "test/train_scanner.parquet"),
        ("plain_text/pets-train2017.parquet", "plain_text/pets-test2017.parquet"),
    ],
)
@pytest.mark.parametrize("folder", ["animals", "a[b]*c?d{e}", "test"])
def test_the_split_of_a_file_is_the_one_that_its_folder_or_name_says(tmp_path, files, folder):
    assert layout(fill(tmp_path / folder, *files)) == ({0}, {1})


@pytest.mark.parametrize("name", ["train_val.parquet", "train-test-site.parquet", "eval.train.parquet"])
def test_a_file_whose_name_says_two_splits_is_refused(tmp_path, name):
    fill(tmp_path, name, "test.parquet")
    with pytest.raises(InputError, match=f"the name of the file {name} has two splits, .*: rename it, or put it into"):
        load_splits(str(tmp_path))


def test_files_without_a_split_in_their_name_are_left_out_and_counted(tmp_path, capsys):
    assert layout(fill(tmp_path, "train.parquet", "test.parquet", "extra.parquet")) == ({0}, {1})
    assert capsys.readouterr().err == f"{tmp_path}: ignored 1 file without a split in the name, e.g. extra.parquet\n"


def test_links_to_folders_of_parquet_files_are_followed(tmp_path):
    fill(tmp_path / "storage", "train.parquet", "test.parquet")
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "data").symlink_to(tmp_path / "storage")
    assert layout(tmp_path / "animals") == ({0}, {1})


def test_without_any_split_in_a_name_all_files_are_training_images(tmp_path):
    fill(tmp_path, "a.parquet", "b.parquet", ".cache/c.parquet")
    splits = load_splits(str(tmp_path), test_share=0.25)
    assert files_of(splits.train) == files_of(splits.test) == {0, 1}
    assert len(splits.train) + len(splits.val) + len(splits.test) == 2 * ROWS


def test_a_card_that_lists_the_files_decides(tmp_path):
    fill(tmp_path, "a.parquet", "b.parquet", "train_val.parquet")
    card = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: b.parquet}
  - {split: test, path: a.parquet}
---
"""
    (tmp_path / "README.md").write_text(card)
    assert layout(tmp_path) == ({1}, {0})


def test_streamed_files_have_the_same_splits(tmp_path):
    splits = load_splits(str(fill(tmp_path, "Train.parquet", "test_1.parquet")), stream=10)
    assert {Image.open(io.BytesIO(row["image"]["bytes"])).getpixel((0, 0))[0] for row in splits.train.rows} == {0}
    assert files_of(splits.test) == {1}
