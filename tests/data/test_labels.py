"""Images with any number of labels: lists of class labels, columns of true and false, and tables beside images."""

import csv
import json
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from sklearn.preprocessing import MultiLabelBinarizer

from diffvit_timm.data.config import DatasetConfig
from diffvit_timm.data.datasets import load_evaluation_split, load_splits
from diffvit_timm.data.fingerprint import fingerprint
from diffvit_timm.data.labels import label_targets, multi_hot, rarest_classes
from diffvit_timm.data.loading import training_images
from diffvit_timm.data.splits import hold_out, take_stratified
from diffvit_timm.errors import InputError

NAMES = ["red", "green", "blue"]
CONFIG = {
    "input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "interpolation": "bilinear"
}  # fmt: skip


def labels_of(count, seed=0):
    """Return random lists of labels; every class and the empty list occur."""
    drawn = np.random.default_rng(seed).random((count, 3)) < [0.5, 0.3, 0.1]
    return [[], [0], [1], [0, 2], *(np.flatnonzero(row).tolist() for row in drawn)][:count]


def pixels_of(label, seed):
    pixels = np.random.default_rng(seed).integers(0, 100, (16, 16, 3), dtype=np.uint8)
    pixels[..., label] += 100
    return PILImage.fromarray(pixels)


def dataset_of(labels, feature=None, **columns):
    images = [pixels_of(label, seed) for seed, label in enumerate(labels)]
    features = {"image": Image(), "tags": feature or List(ClassLabel(names=NAMES))}
    features |= {name: kind for name, (kind, _) in columns.items()}
    values = {name: column for name, (_, column) in columns.items()}
    return Dataset.from_dict({"image": images, "tags": labels, **values}, features=Features(features))


def write_lists(folder, labels=None, **kwargs):
    for split, count, seed in (("train", 40, 0), ("test", 20, 1)):
        own = labels if labels is not None else labels_of(count, seed)
        dataset_of(own, **kwargs).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_booleans(folder, kind="bool", values=(False, True)):
    for split, count, seed in (("train", 40, 0), ("test", 20, 1)):
        labels = labels_of(count, seed)
        columns = {name: [values[index in own] for own in labels] for index, name in enumerate(NAMES)}
        images = [pixels_of(label, number) for number, label in enumerate(labels)]
        features = Features({"image": Image(), **{name: Value(kind) for name in NAMES}, "age": Value("int64")})
        rows = {"image": images, **columns, "age": list(range(count))}
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_table(folder, sub="", name="metadata.csv"):
    for split, count, seed in (("train", 40, 0), ("test", 20, 1)):
        place = folder / split / sub
        place.mkdir(parents=True)
        rows = []
        for number, own in enumerate(labels_of(count, seed)):
            pixels_of(own, number).save(place / f"{number:02d}.png")
            rows.append({"file_name": f"{number:02d}.png", **{n: i in own for i, n in enumerate(NAMES)}})
        with (place / name).open("w") as file:
            if name.endswith("jsonl"):
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    return folder


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_lists, {}),
        (write_lists, {"label_column": "tags"}),
        (write_booleans, {}),
        (write_booleans, {"label_column": "red, green,blue"}),
        (lambda folder: write_booleans(folder, "int64", (0, 1)), {"label_column": "red,green,blue"}),
        (lambda folder: write_booleans(folder, "int8", (-1, 1)), {"label_column": "red,green,blue"}),
        (lambda folder: write_booleans(folder, "float32", (0, 1)), {"label_column": "red,green,blue"}),
        (write_table, {}),
        (lambda folder: write_table(folder, "images"), {}),
        (lambda folder: write_table(folder, name="metadata.jsonl"), {}),
    ],
)
def test_every_form_of_several_labels_gives_the_same_splits(tmp_path, write, options):
    splits = load_splits(str(write(tmp_path)), **options, multi_label=True)
    assert splits.is_multi_label
    assert splits.class_names == NAMES
    assert splits.test["label"][:] == labels_of(20, 1)
    expected = MultiLabelBinarizer(classes=[0, 1, 2]).fit_transform(labels_of(20, 1))
    assert label_targets(splits.test).tolist() == expected.tolist()
    assert sorted([*splits.train["label"][:], *splits.val["label"][:]]) == sorted(labels_of(40, 0))


@pytest.mark.parametrize("write", [write_lists, write_booleans])
def test_a_stream_has_the_same_targets(tmp_path, write):
    splits = load_splits(str(write(tmp_path)), stream=40, multi_label=True)
    images = training_images(splits.train, "none", CONFIG)
    rows = iter(images.rows)
    seen = [images.collate([next(rows)])[1][0].tolist() for _ in range(40)]
    expected = MultiLabelBinarizer(classes=[0, 1, 2]).fit_transform(labels_of(40, 0)).tolist()
    assert sorted(seen) == sorted(expected)


def test_small_images_in_memory_and_on_disk_have_the_same_targets(tmp_path):
    splits = load_splits(str(write_lists(tmp_path)), multi_label=True)
    small, stored = (training_images(splits.test, policy, CONFIG) for policy in ("none", "color"))
    assert type(small) is not type(stored)
    assert [small[i][1].tolist() for i in range(20)] == [stored[i][1].tolist() for i in range(20)]


def test_a_command_that_needs_one_label_per_image_refuses_lists_and_does_not_see_booleans(tmp_path):
    (tmp_path / "lists").mkdir(), (tmp_path / "booleans").mkdir()
    lists, booleans = write_lists(tmp_path / "lists"), write_booleans(tmp_path / "booleans")
    for load in (load_splits, load_evaluation_split):
        with pytest.raises(InputError, match=r"`label_column=tags` of .* has a list of labels per image"):
            load(str(lists))
        with pytest.raises(InputError, match="such as red, are several labels per image; use diffvit train"):
            load(str(booleans))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("red,green,red", "names a column twice"),
        ("red,pink", "names pink, which is not a column of .* \\(train\\): choose among image, red, green, blue, age"),
        ("red,age", "age of .* \\(train\\) is not a column of true and false: it has the values 0, 1, 10, 11"),
    ],
)
def test_columns_that_are_not_of_true_and_false_are_refused(tmp_path, columns, message):
    with pytest.raises(InputError, match=message):
        load_splits(str(write_booleans(tmp_path)), label_column=columns, multi_label=True)


def test_three_values_are_not_true_and_false(tmp_path):
    """As in CheXpert, whose -1 says that an attribute is uncertain."""
    for split in ("train", "test"):
        numbers = dataset_of([[0], [1], [2]]).remove_columns("tags")
        numbers = numbers.add_column("red", [0, 1, -1]).add_column("green", [0, 1, 0])
        numbers.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match=r"red of .* has the values -1, 0, 1; numbers must be 0 and 1, or -1 and 1"):
        load_splits(str(tmp_path), label_column="red,green", multi_label=True)


def test_a_missing_value_is_refused_with_its_row(tmp_path):
    write_booleans(tmp_path, values=(None, True))
    with pytest.raises(InputError, match=r"\(train\)`: row \d+ has no value in red: fill it in for every image"):
        load_splits(str(tmp_path), multi_label=True)


def test_a_stream_of_numbers_is_refused_before_it_is_read(tmp_path):
    write_booleans(tmp_path, "int64", (0, 1))
    with pytest.raises(InputError, match=r"red of .* is not a column of true and false: leave out `stream`, or store"):
        load_splits(str(tmp_path), label_column="red,green", stream=8, multi_label=True)


def test_a_missing_list_is_a_missing_label_and_an_empty_one_is_not(tmp_path):
    labels = labels_of(20)
    load_splits(str(write_lists(tmp_path, labels=labels)), multi_label=True)
    write_lists(tmp_path, labels=[*labels[:7], None, *labels[8:]])
    with pytest.raises(InputError, match=r"train has images without a label \(the first is row 7\)"):
        load_splits(str(tmp_path), multi_label=True)


def test_images_that_all_have_no_class_are_refused(tmp_path):
    with pytest.raises(InputError, match="no image of train has a label: check the label column"):
        load_splits(str(write_lists(tmp_path, labels=[[]] * 20)), multi_label=True)


def test_files_with_other_classes_are_refused(tmp_path):
    write_lists(tmp_path)
    other = List(ClassLabel(names=["red", "blue", "green"]))
    dataset_of(labels_of(9), other).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="the class names of test differ from those of train"):
        load_splits(str(tmp_path), multi_label=True)


def test_class_folders_come_before_a_table(image_folder, tmp_path, capsys):
    folder = tmp_path / "animals"
    shutil.copytree(image_folder, folder)
    (folder / "train" / "metadata.csv").write_text("file_name,red,green\ncat/cat-00.png,True,False\n")
    splits = load_splits(str(folder), multi_label=True)
    assert splits.class_names == ["cat", "dog", "owl"]
    assert "metadata.csv is not used: the folders beside it are the classes" in capsys.readouterr().err


def test_a_table_within_one_class_folder_does_not_hide_the_others(image_folder, tmp_path):
    folder = tmp_path / "animals"
    shutil.copytree(image_folder, folder)
    (folder / "train" / "cat" / "metadata.csv").write_text("file_name,red,green\ncat-00.png,True,False\n")
    assert load_splits(str(folder), multi_label=True).class_names == ["cat", "dog", "owl"]


def test_a_split_without_a_table_is_not_left_out_silently(tmp_path):
    folder = write_table(tmp_path)
    (folder / "test" / "metadata.csv").unlink()
    with pytest.raises(InputError, match="the images of train have a table, but those of test do not: add metadata"):
        load_splits(str(folder), multi_label=True)


def test_digits_among_distractors_have_one_label(tmp_path):
    write_lists(tmp_path)
    with pytest.raises(InputError, match="has a list of labels per image"):
        DatasetConfig(f"{tmp_path}+clutter").load(multi_label=True)


def test_a_held_out_part_has_the_share_of_every_class():
    labels = labels_of(4000)
    data = Dataset.from_dict(
        {"label": labels, "row": range(4000)}, Features({"label": List(ClassLabel(names=NAMES)), "row": Value("int64")})
    )
    rest, held = hold_out(data, 0.1, "tags")
    assert sorted([*rest["row"], *held["row"]]) == list(range(4000))
    assert len(held) == 400
    assert held.column_names == ["label", "row"]
    shares = [label_targets(part).mean(0) for part in (rest, held)]
    assert np.allclose(*shares, atol=0.03)
    assert shares[1][2].item() == pytest.approx(shares[0][2].item(), rel=0.02)  # the rarest class is divided evenly


def test_a_rare_class_does_not_stop_the_division():
    """A class of one image cannot be in both parts."""
    labels = [[0], [1]] * 20 + [[0, 2]]
    data = Dataset.from_dict({"label": labels}, Features({"label": List(ClassLabel(names=NAMES))}))
    rest, held = hold_out(data, 0.1, "tags")
    assert len(rest) + len(held) == 41
    assert rarest_classes(data)[-1] == 2
    assert rarest_classes(data, least=10)[-1] == 0


def test_a_class_without_training_images_is_reported(tmp_path, capsys):
    write_lists(tmp_path)
    dataset_of([[0], [1], []] * 10).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    load_splits(str(tmp_path), multi_label=True)
    assert "warning: 1 class of the validation or test images has no training images: blue" in capsys.readouterr().err


def test_a_part_keeps_an_image_of_every_rarest_class():
    data = Dataset.from_dict(
        {"label": [[0]] * 50 + [[0, 1]] * 5 + [[]] * 5}, Features({"label": List(ClassLabel(names=NAMES))})
    )
    part = take_stratified(data, 6)
    assert len(part) == 6
    assert [0, 1] in part["label"][:]
    assert [] in part["label"][:]


def test_the_fingerprint_sees_every_label():
    first, second = (dataset_of(labels).rename_column("tags", "label") for labels in ([[0], [1, 2]], [[0], [1]]))
    first, second = (data.cast_column("image", Image(decode=False)) for data in (first, second))
    images = second.remove_columns("label")
    same_images = images.add_column("label", [[0], [1, 2]], feature=List(ClassLabel(names=NAMES)))
    assert fingerprint(second) != fingerprint(same_images)


def test_a_stream_of_true_and_false_keeps_the_bytes_of_its_images(tmp_path):
    write_booleans(tmp_path)
    stored, streamed = (load_splits(str(tmp_path), stream=count, multi_label=True) for count in (0, 40))
    bytes_of = {row["image"]["bytes"] for split in (stored.train, stored.val) for row in split}
    assert {row["image"]["bytes"] for row in streamed.train.rows} == bytes_of


def test_columns_of_true_and_false_can_be_named_beside_a_column_of_class_labels(tmp_path):
    write_booleans(tmp_path)
    for path in tmp_path.glob("*.parquet"):
        rows = Dataset.from_parquet(str(path))
        label = ClassLabel(names=["cat", "dog"])
        rows.add_column("label", [0, 1] * (len(rows) // 2), feature=label).to_parquet(path)
    assert load_splits(str(tmp_path), multi_label=True).class_names == ["cat", "dog"]
    assert load_splits(str(tmp_path), label_column="red,green,", multi_label=True).class_names == ["red", "green"]
    with pytest.raises(InputError, match="`label_column=red,` needs two names or more"):
        load_splits(str(tmp_path), label_column="red,", multi_label=True)
    with pytest.raises(InputError, match=r"image of .* is not a column of true and false: it has the type"):
        load_splits(str(tmp_path), label_column="red,image", multi_label=True)


def test_a_test_split_without_values_is_not_used_where_there_is_a_validation_split(tmp_path, capsys):
    write_booleans(tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").rename(tmp_path / "validation-00000-of-00001.parquet")
    features = Features({"image": Image(), **{name: Value("bool") for name in NAMES}, "age": Value("int64")})
    rows = {"image": [pixels_of([], 0)] * 3, **dict.fromkeys(NAMES, [None] * 3), "age": [1, 2, 3]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert len(load_splits(str(tmp_path), multi_label=True).test) == 20
    assert "the images of test have no labels" in capsys.readouterr().err
    assert len(load_splits(str(tmp_path), test_share=0.2, multi_label=True).test) == 8


@pytest.mark.parametrize("labels", [None, [0, None]])
def test_a_missing_list_of_a_stream_is_refused_when_it_is_read(labels):
    with pytest.raises(InputError, match="an image has no list of labels: give each image one, which may be empty"):
        multi_hot(labels, 3)


def test_a_missing_value_in_a_streamed_test_split_is_one_line(tmp_path):
    write_booleans(tmp_path, values=(None, True))
    with pytest.raises(InputError, match=r"\(test\)`: an image has no value in red: fill it in for every image"):
        load_splits(str(tmp_path), stream=8, multi_label=True)


def test_a_test_split_that_happens_to_have_no_class_is_refused(tmp_path):
    write_lists(tmp_path, labels=[[0], [1], *[[]] * 38])
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(InputError, match=r"no (val|test) image has a class, so nothing can be measured"):
        load_splits(str(tmp_path), test_share=0.05, multi_label=True)


def rewrite(table, change):
    rows = table.read_text().splitlines()
    change(rows)
    table.write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.append(rows[1]), "metadata.csv has 2 rows of 00.png: keep one"),
        (lambda rows: rows.append("99.png,True,False,False"), "row 40 names no image that is there"),
        (lambda rows: rows.append(",True,False,False"), "row 40 names no image that is there"),
    ],
)
def test_a_table_that_does_not_fit_its_images_is_refused(tmp_path, change, message):
    folder = write_table(tmp_path)
    rewrite(folder / "train" / "metadata.csv", change)
    with pytest.raises(InputError, match=message):
        load_splits(str(folder), multi_label=True)


def test_images_without_a_row_are_counted(tmp_path, capsys):
    folder = write_table(tmp_path)
    rewrite(folder / "train" / "metadata.csv", lambda rows: rows.pop())
    splits = load_splits(str(folder), multi_label=True)
    assert len(splits.train) + len(splits.val) == 39
    assert "not used: 1 image without a row in metadata.csv" in capsys.readouterr().err


def test_one_table_for_all_splits_is_refused(tmp_path):
    folder = write_table(tmp_path)
    (folder / "test" / "metadata.csv").unlink()
    (folder / "train" / "metadata.csv").rename(folder / "metadata.csv")
    with pytest.raises(
        InputError, match=r"divide the table metadata.csv, and put one part into each of test and train"
    ):
        load_splits(str(folder), multi_label=True)


def test_lists_of_words_are_refused_with_the_cast_that_they_need(tmp_path):
    rows = dataset_of([[0], [1]] * 5).remove_columns("tags").add_column("words", [["a"], ["b"]] * 5)
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"cast its lists, such as words, to List\(ClassLabel\(names=...\)\)"):
        load_splits(str(tmp_path), multi_label=True)


def test_a_label_outside_the_classes_is_refused():
    assert multi_hot([2, 0, 2], 3).tolist() == [1, 0, 1]
    with pytest.raises(InputError, match="an image has the label 3, but there are 3 classes"):
        multi_hot([3], 3)
