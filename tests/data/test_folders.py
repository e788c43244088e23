"""The layout of a folder of images is decided by its top level, and never guessed from words in names."""

import os

import pytest
from PIL import Image

from diffvit_timm.data.checks import check_images
from diffvit_timm.data.datasets import load_images, load_splits
from diffvit_timm.data.folders import load_image_folder
from diffvit_timm.errors import InputError


def fill(root, *files):
    """Write small images (and empty files of other kinds) under a folder."""
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".csv", ""):
            path.write_text("")
        else:
            Image.new("RGB", (8, 8), (number * 7 % 256, number, 90)).save(path)
    return root


def many(folder, count, *classes, name="{}.png"):
    return [f"{folder}/{label}/{name.format(number)}".lstrip("/") for label in classes for number in range(count)]


def layout(root):
    """Split -> set of (path below the root, class name)."""
    loaded = load_image_folder(root)
    return {
        split: {
            (row["image"]["path"].removeprefix(f"{root}/"), data.features["label"].names[row["label"]])
            for row in data.cast_column("image", data.features["image"].__class__(decode=False))
        }
        for split, data in loaded.items()
    }


def expected(split, count, *classes):
    return {(file, file.split("/")[1]) for file in many(split, count, *classes)}


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "dev", "Eval")]
)
def test_splits_are_folders_at_the_top_level_in_any_case(tmp_path, names):
    fill(tmp_path, *(file for name in names for file in many(name, 2, "cat", "dog")))
    found = layout(tmp_path)
    assert list(found) == ["train", "validation", "test"] or set(found) == {"train", "validation", "test"}
    for split, name in zip(("train", "validation", "test"), names, strict=True):
        assert found[split] == expected(name, 2, "cat", "dog")


@pytest.mark.parametrize("word", ["train", "val", "test", "evaluation", "test_tube", "bullet_train", "dev"])
def test_a_class_may_have_the_name_of_a_split(tmp_path, word):
    fill(tmp_path, *many("train", 3, "cat", word), *many("test", 2, "cat", word))
    assert layout(tmp_path) == {"train": expected("train", 3, "cat", word), "test": expected("test", 2, "cat", word)}
    alone = fill(tmp_path / "alone", *many("", 2, "cat", word))
    assert {label for _, label in layout(alone)["train"]} == {"cat", word}
    assert len(layout(alone)) == 1


def test_words_in_the_names_of_files_mean_nothing(tmp_path):
    fill(
        tmp_path,
        *many("train", 10, "cat", "dog", name="train-{:02d}.png"),
        *many("test", 5, "cat", "dog", name="val-{}.png"),
    )
    splits = load_splits(str(tmp_path))
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (20, 10)


def test_the_class_is_the_folder_below_the_split_at_any_depth(tmp_path):
    fill(tmp_path, "train/cat/a/b/1.png", "train/cat/2.png", "train/dog/a/3.png", "test/cat/x/4.png")
    assert layout(tmp_path)["train"] == {
        ("train/cat/a/b/1.png", "cat"),
        ("train/cat/2.png", "cat"),
        ("train/dog/a/3.png", "dog"),
    }
    assert layout(tmp_path)["test"] == {("test/cat/x/4.png", "cat")}


@pytest.mark.parametrize("name", ["a[1]", "b*c", "100% {x}", "über", "with space", "q?"])
def test_any_characters_may_be_in_a_path(tmp_path, name):
    fill(tmp_path / name, *many("train", 2, "cat", name), *many("test", 1, "cat", name))
    assert len(layout(tmp_path / name)["train"]) == 4


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp", "tiff", "gif", "ppm"])
def test_every_format_that_pillow_reads_is_an_image(tmp_path, suffix):
    fill(tmp_path, *many("train", 2, "cat", "dog", name="{}." + suffix), *many("test", 1, "cat", "dog"))
    assert len(layout(tmp_path)["train"]) == 4


def test_files_that_are_left_out_are_counted(tmp_path, capsys):
    fill(
        tmp_path,
        *many("train", 2, "cat", "dog"),
        *many("test", 1, "cat"),
        "README.txt",
        "train/cat/a.csv",
    )
    fill(tmp_path, "train/.thumbs/x.png", "__MACOSX/train/cat/1.png", "train/cat/.DS_Store")
    assert {len(rows) for rows in layout(tmp_path).values()} == {4, 1}
    line = next(line for line in capsys.readouterr().err.splitlines() if "not used" in line)
    assert line.startswith(f"{tmp_path}: not used: 5 files in no class folder or of another kind (2 .png")
    assert "1 .csv" in line


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/1.png", "test/2.png"], "the images of test are in no class folder: put them into test/CLASS"),
        (["train/cat/1.png", "train/2.png"], "the folder train has class folders, but also the image 2.png: move it"),
        (["train/cat/1.png", "Training/cat/2.png"], "has two folders of one split, Training and train: keep one"),
        (["train/cat/1.png", "dog/2.png"], "the folder train is a split with class folders, but the folder dog is not"),
        (
            ["train/cat/1.png", "test/2.png"],
            "the folder train is a split with class folders, but the folder test is not",
        ),
        (["train/cat/1.png", "test/dog/2.png"], "test has the class dog, which train does not have"),
    ],
)
def test_a_layout_that_can_be_read_in_two_ways_is_refused(tmp_path, files, message):
    fill(tmp_path, *files)
    with pytest.raises(InputError) as caught:
        load_splits(str(tmp_path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"`dataset={tmp_path}`")


def test_classes_without_splits_need_a_share_to_test_on(tmp_path):
    fill(tmp_path, *many("", 20, "cat", "train"))
    with pytest.raises(InputError, match="has no test split, only train: add one, or set `test_share`"):
        load_splits(str(tmp_path))
    splits = load_splits(str(tmp_path), test_share=0.2)
    assert splits.class_names == ["cat", "train"]
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (32, 8)


def test_images_without_labels_are_read_from_any_layout(tmp_path):
    assert len(load_images(str(fill(tmp_path / "flat", "1.png", "2.jpg")))) == 2
    assert len(load_images(str(fill(tmp_path / "classes", *many("", 2, "cat", "dog"))))) == 4
    assert len(load_images(str(fill(tmp_path / "splits", *many("train", 3, "cat"), *many("test", 2, "cat"))))) == 3


@pytest.mark.parametrize("place", [b"train/Gr\xfcn/1.png", b"train/cat/Gr\xfcn.png"])
def test_a_name_that_is_not_utf8_is_one_line(tmp_path, place):
    fill(tmp_path, *many("train", 2, "cat", "dog"))
    strange = os.path.join(os.fsencode(tmp_path), place)
    os.makedirs(os.path.dirname(strange), exist_ok=True)
    os.link(tmp_path / "train" / "cat" / "0.png", strange)
    with pytest.raises(InputError, match=r"the name .*Gr\\xfcn.* is not UTF-8: rename it"):
        load_image_folder(tmp_path)


def test_links_to_folders_are_followed(tmp_path):
    storage = fill(tmp_path / "storage", *many("train", 3, "cat", "dog"), *many("test", 2, "cat", "dog"))
    (tmp_path / "root" / "test").mkdir(parents=True)
    (tmp_path / "root" / "train").symlink_to(storage / "train")
    for name in ("cat", "dog"):
        (tmp_path / "root" / "test" / name).symlink_to(storage / "test" / name)
    assert layout(tmp_path / "root") == {
        "train": expected("train", 3, "cat", "dog"),
        "test": expected("test", 2, "cat", "dog"),
    }


def test_a_link_back_to_a_folder_above_is_not_followed(tmp_path):
    fill(tmp_path, *many("train", 2, "cat", "dog"))
    (tmp_path / "train" / "cat" / "all").symlink_to(tmp_path)
    assert layout(tmp_path) == {"train": expected("train", 2, "cat", "dog")}


def test_a_link_to_a_missing_image_is_refused_when_it_is_read(tmp_path):
    fill(tmp_path, *many("train", 20, "cat", "dog"), *many("test", 2, "cat", "dog"))
    (tmp_path / "test" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"gone\.png does not decode .*No such file"):
        check_images(load_splits(str(tmp_path)))
