"""Datasets: their splits, class names and images, and a clear error for those that cannot be used."""

import io

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.digits import digits_splits
from diffvit_timm.data.images import ImageDataset
from diffvit_timm.data.splits import _closest_folds
from diffvit_timm.errors import InputError


def png(colour=(200, 30, 60), fmt="png"):
    buffer = io.BytesIO()
    image = colour if isinstance(colour, Image.Image) else Image.new("RGB", (20, 20), colour)
    image.save(buffer, format=fmt)
    return buffer.getvalue()


def pixels_of(data, in_chans=3):
    """The decoded image as (C, H, W) in 0..255, through ImageDataset."""
    features = Features({"image": ImageFeature(decode=False), "label": ClassLabel(names=["only"])})
    split = Dataset.from_dict({"image": [{"bytes": data, "path": None}], "label": [0]}, features=features)
    to_tensor = lambda image, seed: torch.from_numpy(np.asarray(image).copy())  # noqa: E731
    image, _ = ImageDataset(split, to_tensor, in_chans=in_chans)[0]
    return image.permute(2, 0, 1).float() if image.ndim == 3 else image[None].float()


def write_parquet(folder, split, names=("cat", "dog"), count=40, **columns):
    """Write a parquet file with the columns image and label, and further ones: name = (feature, value)."""
    folder.mkdir(exist_ok=True)
    features = {"image": ImageFeature(), "label": ClassLabel(names=list(names))}
    rows = {"image": [{"bytes": png(), "path": None}] * count, "label": [i % len(names) for i in range(count)]}
    for name, (feature, value) in columns.items():
        features.pop(name, None), rows.pop(name, None)
        if feature is not None:
            features[name], rows[name] = feature, [value] * count
    Dataset.from_dict(rows, features=Features(features)).to_parquet(folder / f"{split}.parquet")
    return folder


def files(split):
    return {row["image"]["path"] for row in split}


def refusal(name, **kwargs):
    """The message of the InputError, which must be one line."""
    with pytest.raises(InputError) as caught:
        load_splits(str(name), **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_image_folder_keeps_its_test_split_and_gives_a_stratified_tenth_of_train_to_validation(image_folder):
    splits = load_splits(str(image_folder))
    assert splits.class_names == ["cat", "dog", "owl"]
    assert (len(splits.train), len(splits.val), len(splits.test)) == (32, 4, 18)
    assert files(splits.test) == {str(path) for path in image_folder.glob("test/*/*.png")}
    assert files(splits.train) | files(splits.val) == {str(path) for path in image_folder.glob("train/*/*.png")}
    assert not files(splits.train) & files(splits.val)
    assert set(splits.val["label"]) == {0, 1, 2}
    for row in splits.val:
        assert f"/{splits.class_names[row['label']]}/" in row["image"]["path"]


def test_the_validation_tenth_is_the_same_every_time(image_folder, splits):
    again = load_splits(str(image_folder))
    assert splits.val["image"] == again.val["image"]
    assert splits.train["image"] == again.train["image"]


def test_parquet_files_load_as_the_same_images_and_class_names(parquet_folder, splits):
    loaded = load_splits(str(parquet_folder))
    assert loaded.class_names == splits.class_names
    to_tensor = lambda image, seed: torch.from_numpy(np.asarray(image).copy())  # noqa: E731
    from_files, from_parquet = (ImageDataset(part.val, to_tensor) for part in (splits, loaded))
    for i in range(len(from_files)):
        assert torch.equal(from_files[i][0], from_parquet[i][0])
        assert from_files[i][1] == from_parquet[i][1]


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_an_official_validation_split_is_used_and_train_stays_whole(make_image_folder, name):
    folder = make_image_folder(**{"train": 3, name: 2, "test": 2})
    splits = load_splits(str(folder))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (9, 6, 6)
    assert files(splits.val) == {str(path) for path in folder.glob(f"{name}/*/*.png")}
    assert files(splits.test) == {str(path) for path in folder.glob("test/*/*.png")}


def test_a_validation_split_without_a_test_split_becomes_the_test_split(make_image_folder):
    folder = make_image_folder(train=10, validation=4)
    splits = load_splits(str(folder))
    assert files(splits.test) == {str(path) for path in folder.glob("validation/*/*.png")}
    assert (len(splits.train), len(splits.val), splits.test.split) == (27, 3, "validation")


def test_class_names_keep_the_datasets_own_order_and_other_column_names_are_understood(tmp_path):
    names, picture = ["owl", "cat", "dog"], {"bytes": png(), "path": None}
    for split in ("train", "test"):
        write_parquet(
            tmp_path / "d", split, names, label=(None, 0), image=(None, 0), id=(Value("int64"), 7),
            img=(ImageFeature(), picture), fine_label=(ClassLabel(names=names), 1),
            coarse_label=(ClassLabel(names=["bird", "mammal"]), 0),
        )  # fmt: skip
    splits = load_splits(str(tmp_path / "d"))
    assert load_splits(str(tmp_path / "d"), label_column="coarse_label").class_names == ["bird", "mammal"]
    assert splits.class_names == names
    for split in (splits.train, splits.val, splits.test):
        assert set(split.column_names) == {"image", "label"}
        assert set(split["label"]) == {1}


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label")])
@pytest.mark.parametrize("fmt", ["jpeg", "png", "webp"])
def test_streamed_images_have_the_bytes_that_are_stored(tmp_path, fmt, columns):
    image, label = columns
    features = Features({image: ImageFeature(), label: ClassLabel(names=["cat", "dog"])})
    rng, stored = np.random.default_rng(0), {}
    for split in ("train", "validation", "test"):
        pictures = [png(Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)), fmt) for _ in range(20)]
        rows = {image: [{"bytes": data, "path": None} for data in pictures], label: [i % 2 for i in range(20)]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
        stored[split] = pictures
    splits = load_splits(str(tmp_path), label_column=label, stream=20)
    assert [row["image"]["bytes"] for row in splits.test] == stored["test"]
    assert [row["image"]["bytes"] for row in splits.val] == stored["validation"]
    assert [row["image"]["bytes"] for row in splits.train.rows] == stored["train"]
    assert [row["label"] for row in splits.train.rows] == [i % 2 for i in range(20)]


def test_a_missing_folder_is_named_with_its_parameter(tmp_path):
    assert refusal(tmp_path / "nowhere").startswith(f"`dataset={tmp_path}/nowhere` is not a folder")
    assert refusal("./nowhere").startswith("`dataset=./nowhere` is not a folder")


@pytest.mark.parametrize("name", ["timm/oxford-iiit-pet", "no-such-dataset"])
def test_a_hub_name_without_a_network_says_to_pass_a_folder(name):
    message = refusal(name)
    assert message.startswith(f"`dataset={name}` is not a folder and cannot be loaded from the Hub")
    assert "pass the path of a folder" in message


def test_a_folder_without_images_or_parquet_is_refused(tmp_path):
    assert refusal(tmp_path).startswith(f"`dataset={tmp_path}` contains neither parquet files nor class folders: ")
    (tmp_path / "notes.md").write_text("nothing here")
    assert refusal(tmp_path).startswith(f"`dataset={tmp_path}` contains neither parquet files nor class folders: ")


def test_a_corrupt_parquet_file_is_refused(tmp_path):
    write_parquet(tmp_path / "d", "test")
    (tmp_path / "d" / "train.parquet").write_bytes(b"PAR1, or not")
    assert refusal(tmp_path / "d").startswith(
        f"`dataset={tmp_path}/d` cannot be read (ArrowInvalid: Parquet magic bytes "
    )


def test_a_dataset_without_a_test_split_is_refused_with_the_splits_it_has(make_image_folder):
    message = refusal(make_image_folder(train=3))
    assert "has no test split, only train" in message
    assert message.startswith("`dataset=")


def test_a_dataset_without_a_train_split_is_refused_with_the_splits_it_has(make_image_folder):
    assert "has no train split, only test" in refusal(make_image_folder(test=3))


def test_an_absent_label_column_is_refused_with_the_choices(image_folder):
    message = refusal(image_folder, label_column="breed")
    assert message.startswith("`label_column=breed` is not a class label")
    assert "choose one of ['label']" in message


def test_labels_that_are_plain_numbers_are_refused_because_they_have_no_class_names(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / "d", split, label=(Value("int64"), 1))
    assert refusal(tmp_path / "d") == (
        f"`dataset={tmp_path / 'd'}` has 0 columns of class labels: make one by class_encode_column of datasets"
    )


def test_the_only_column_of_class_labels_is_found_and_two_ask_for_the_parameter(tmp_path):
    kinds, colours = ClassLabel(names=["cat", "dog"]), ClassLabel(names=["black", "white"])
    for split in ("train", "test"):
        write_parquet(tmp_path / "one", split, label=(None, 0), breed=(kinds, 1))
        write_parquet(tmp_path / "two", split, label=(None, 0), breed=(kinds, 1), colour=(colours, 0))
    assert load_splits(str(tmp_path / "one")).class_names == ["cat", "dog"]
    assert refusal(tmp_path / "two") == (
        f"`dataset={tmp_path / 'two'}` has 2 columns of class labels: choose one with `label_column`: "
        "['breed', 'colour']"
    )
    assert load_splits(str(tmp_path / "two"), label_column="colour").class_names == ["black", "white"]


@pytest.mark.parametrize("stream", [0, 20])
def test_without_a_share_for_validation_the_test_images_are_the_validation_images(make_image_folder, stream):
    folder = make_image_folder(train=10, test=4)
    splits = load_splits(str(folder), stream=stream, val_share=0.0)
    assert files(splits.val) == files(splits.test) == {str(path) for path in folder.glob("test/*/*.png")}
    assert stream or len(splits.train) == 30


def test_the_share_of_the_validation_images_can_be_chosen(make_image_folder):
    splits = load_splits(str(make_image_folder(train=10, test=4)), val_share=0.3)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (21, 9, 12)


def test_two_image_columns_ask_for_the_parameter_and_then_use_the_chosen_one(tmp_path):
    blue = {"bytes": png((0, 0, 255)), "path": None}
    for split in ("train", "test"):
        write_parquet(tmp_path / "d", split, mask=(ImageFeature(), blue))
    message = refusal(tmp_path / "d")
    assert "2 image columns" in message
    assert "keep one, or pass `image_column`" in message
    wrong = refusal(tmp_path / "d", image_column="photo")
    assert wrong.startswith("`image_column=photo` is not an image column")
    assert "['image', 'mask']" in wrong
    chosen = load_splits(str(tmp_path / "d"), image_column="mask").test[0]["image"]["bytes"]
    assert pixels_of(chosen).mean((1, 2)).tolist() == [0, 0, 255]


def test_a_test_split_with_another_order_of_class_names_is_refused(tmp_path):
    write_parquet(tmp_path / "d", "train", ("cat", "dog"))
    write_parquet(tmp_path / "d", "test", ("dog", "cat"))
    assert "the class names of test differ from those of train" in refusal(tmp_path / "d")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("odd", [0, 1, 2])
def test_a_file_of_a_split_with_another_order_of_class_names_is_refused(tmp_path, split, odd):
    for number in range(3):
        names = ("dog", "cat") if number == odd else ("cat", "dog")
        write_parquet(tmp_path / "d", f"{split}-0000{number}-of-00003", names)
    write_parquet(tmp_path / "d", "test" if split == "train" else "train")
    message = refusal(tmp_path / "d")
    assert "class names" in message
    assert "differ from those of train" in message


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_that_no_class_has_are_refused_with_the_row(tmp_path, split):
    for name in ("train", "validation", "test"):
        write_parquet(tmp_path / "d", name)
    path = tmp_path / "d" / f"{split}.parquet"
    table = pq.read_table(path)
    labels = table["label"].to_pylist()
    labels[7] = 40
    pq.write_table(table.set_column(1, table.schema.field("label"), [labels]), path)
    assert refusal(tmp_path / "d").endswith(f"row 7 of {split} has the label 40, but there are 2 classes")


def test_a_test_split_without_labels_is_refused_before_hours_of_training(tmp_path):
    write_parquet(tmp_path / "d", "train")
    write_parquet(tmp_path / "d", "test", label=(ClassLabel(names=["cat", "dog"]), -1))
    assert refusal(tmp_path / "d").startswith(f"`dataset={tmp_path}/d`: test has images without a label")


def test_a_class_with_too_few_images_for_validation_is_refused(make_image_folder):
    assert "too small to hold out 10% of the images of every class" in refusal(make_image_folder(train=2, test=1))


def bach(folder, label=-1, patient="patient {}"):
    """Write parquet files like the Hub's 1aurent/BACH: a column of patients, and a test split without labels."""
    names = ["Benign", "InSitu", "Invasive", "Normal"]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names), "patient": Value("string")})
    for split, count in (("train", 80), ("test", 8)):
        rows = {
            "image": [{"bytes": png((i, 0, 0)), "path": None} for i in range(count)],
            "label": [i % 4 if split == "train" else label for i in range(count)],
            "patient": [patient and patient.format(i // 4) for i in range(count)],
        }
        folder.mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def reds(split):
    return {pixels_of(row["image"]["bytes"])[0, 0, 0].item() for row in split}


@pytest.mark.parametrize("label", [-1, None])
def test_a_share_of_the_training_images_can_be_the_test_split(tmp_path, label):
    folder = bach(tmp_path / "bach", label)
    assert refusal(folder).endswith(
        "test has images without a label (the first is row 0): use another dataset, or test on training images with "
        "`test_share=0.25`"
    )
    splits = load_splits(str(folder), test_share=0.25)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (54, 6, 20)
    assert sorted(splits.test["label"]) == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    assert not reds(splits.train) & reds(splits.test)
    assert not reds(splits.train) & reds(splits.val)
    assert reds(load_splits(str(folder), test_share=0.25).test) == reds(splits.test)


def test_no_patient_is_in_two_splits(tmp_path):
    splits = load_splits(str(bach(tmp_path / "bach")), test_share=0.25, group_column="patient")
    patients = [{int(red) // 4 for red in reds(split)} for split in (splits.train, splits.val, splits.test)]
    assert sum(len(part) for part in patients) == len(set.union(*patients)) == 20
    assert len(splits.test) == 20
    assert set(splits.train.column_names) == {"image", "label"}


@pytest.mark.parametrize("share", [0.1, 0.3, 0.4, 0.6])
def test_groups_are_held_out_in_about_the_requested_share(tmp_path, share):
    splits = load_splits(str(bach(tmp_path / "bach")), test_share=share, group_column="patient")
    assert len(splits.test) == pytest.approx(80 * share, abs=4)
    rest = 80 - len(splits.test)
    assert len(splits.val) == pytest.approx(0.1 * rest, abs=4)
    assert len(splits.train) + len(splits.val) == rest


def test_a_class_without_training_images_is_refused(tmp_path):
    """There is one patient per class, so holding out a patient removes a class from the training images."""
    write_parquet(tmp_path / "d", "train", names=("cat", "dog", "owl", "fox"), group=(Value("string"), "one"))
    rows = datasets.load_dataset(str(tmp_path / "d"), split="train")
    rows = rows.remove_columns("group").add_column("group", [str(label) for label in rows["label"]])
    rows.to_parquet(tmp_path / "d" / "train.parquet")
    said = refusal(tmp_path / "d", test_share=0.25, group_column="group")
    assert "has no training images of the class " in said
    assert said.endswith("which has validation or test images: `group_column=group` has too few groups of it")


def test_training_images_without_a_group_are_refused(tmp_path):
    said = refusal(bach(tmp_path / "bach", patient=None), test_share=0.25, group_column="patient")
    assert said == "`group_column=patient`: some training images have no group: give each image one"


def test_an_unused_test_split_may_have_no_class_names(tmp_path):
    write_parquet(tmp_path / "d", "train", count=24)
    write_parquet(tmp_path / "d", "test", label=(Value("int64"), -1))
    assert "test has images without a label" in refusal(tmp_path / "d")
    assert load_splits(str(tmp_path / "d"), test_share=0.25).class_names == ["cat", "dog"]


def test_a_share_that_no_groups_add_up_to_is_refused(tmp_path):
    said = refusal(bach(tmp_path / "bach"), test_share=0.01, group_column="patient")
    assert said.startswith("`test_share=0.01`: the groups of `group_column=patient` are too large for it")
    assert "would hold out 5% of the images" in said


def test_without_groups_a_share_is_rounded_up_to_one_image_per_class(tmp_path):
    splits = load_splits(str(write_parquet(tmp_path / "d", "train", count=24)), test_share=0.05)
    assert sorted(splits.test["label"]) == [0, 1]


def test_folds_of_several_sizes_are_chosen_to_come_close_to_the_target():
    parts = [np.arange(n) for n in (60, 10, 10, 10, 10)]
    assert [len(part) for part in _closest_folds(parts, 25)] == [10, 10]
    assert [len(part) for part in _closest_folds(parts, 66)] == [60, 10]
    assert [len(part) for part in _closest_folds(parts, 2)] == [10]


def test_a_single_class_is_refused(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / "d", split, ("cat",))
    assert "has only one class" in refusal(tmp_path / "d")


def test_an_unused_split_may_have_no_labels(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / "d", split)
    write_parquet(tmp_path / "d", "unlabeled", label=(ClassLabel(names=["cat", "dog"]), -1))
    assert load_splits(str(tmp_path / "d")).class_names == ["cat", "dog"]


def test_a_group_column_that_does_not_exist_or_has_no_effect_is_refused(tmp_path, make_image_folder):
    assert "`group_column=doctor` is not a column of" in refusal(
        bach(tmp_path / "bach"), test_share=0.25, group_column="doctor"
    )
    for column in ("label", "image"):
        said = refusal(tmp_path / "bach", test_share=0.25, group_column=column)
        assert said == f"`group_column={column}` is the column of the {column}s: choose another"
    divided = make_image_folder(train=3, val=2, test=2)
    assert "has its own train, validation and test splits" in refusal(divided, group_column="label")


@pytest.mark.parametrize("damage", ["truncated", "no image", "empty"])
def test_a_corrupt_image_is_named(make_image_folder, damage):
    folder = make_image_folder(train=10, test=1)
    broken = folder / "test" / "dog" / "dog-00.png"
    whole = broken.read_bytes()
    broken.write_bytes({"truncated": whole[: len(whole) // 2], "no image": b"hello", "empty": b""}[damage])
    test = load_splits(str(folder)).test
    dataset = ImageDataset(test, lambda image, seed: image)
    index = next(i for i, row in enumerate(test) if row["image"]["path"] == str(broken))
    with pytest.raises(InputError) as caught:
        dataset[index]
    assert str(caught.value).startswith(f"{broken} does not decode")
    assert "fix it or leave it out" in str(caught.value)


def test_a_corrupt_image_without_a_file_is_named_by_split_and_index(tmp_path):
    write_parquet(tmp_path / "d", "train")
    write_parquet(tmp_path / "d", "test", image=(ImageFeature(), {"bytes": png()[:60], "path": None}))
    test = load_splits(str(tmp_path / "d")).test
    with pytest.raises(InputError, match=r"^image 7 of split test does not decode"):
        ImageDataset(test, lambda image, seed: image)[7]


def test_the_two_parts_of_the_digits_share_the_test_split_and_nothing_else():
    source, target = digits_splits()
    assert source.test is target.test
    assert source.class_names == target.class_names == [str(digit) for digit in range(10)]
    parts = [source.train, source.val, target.train, target.val, source.test]
    images = [[row["image"]["bytes"] for row in part] for part in parts]
    assert sum(map(len, images)) == 1797
    assert len({data for part in images for data in part}) == sum(len(set(part)) for part in images)
    assert abs(2 * len(source.train) / len(target.train) - 1) < 0.01
    for part in parts:
        assert set(part["label"]) == set(range(10))


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source, _ = digits_splits()
    row = source.test[0]
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
    assert pixels.shape == (8, 8)
    digits = load_digits()
    matches = (np.abs(digits.images * 255 / 16 - pixels) < 1).all((1, 2))
    assert digits.target[matches].tolist() == [row["label"]]


def test_the_real_pets_folder_loads_with_the_hubs_splits_and_breeds(pets):
    splits = load_splits(str(pets))
    assert len(splits.train) + len(splits.val) == 1573
    assert len(splits.val) == 158
    assert len(splits.test) == 1561
    assert len(splits.class_names) == len(set(splits.class_names)) == 37
    assert splits.class_names[0] == "abyssinian"
    share = np.bincount(splits.val["label"], minlength=37) / np.bincount(
        [*splits.train["label"], *splits.val["label"]], minlength=37
    )
    assert share.max() < 0.25
    image, label = ImageDataset(splits.test, lambda image, seed: image)[0]
    assert image.mode == "RGB"
    assert min(image.size) == 256
    assert 0 <= label < 37
