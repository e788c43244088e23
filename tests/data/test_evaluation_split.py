"""Commands that only test networks need only test images, in the layouts that ImageNet and folders of photos have."""

import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffvit_timm.data.config import DatasetConfig
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.errors import InputError

TENCH, GOLDFISH = "n01440764", "n01443537"


def write_images(root, *files):
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(root / file, "jpeg")
    return root


def write_parquet(root, **labels):
    """Write one parquet file per split, with the given labels of two classes."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["tench, Tinca tinca", "goldfish"])})
    root.mkdir()
    for split, own in labels.items():
        images = [Image.new("RGB", (8, 8), (row, 0, 0)) for row in range(len(own))]
        Dataset.from_dict({"image": images, "label": own}, features=features).to_parquet(root / f"{split}-0.parquet")
    return root


@pytest.mark.parametrize(
    ("files", "split", "count"),
    [
        (
            [f"val/{TENCH}/ILSVRC2012_val_00000293.JPEG", f"val/{GOLDFISH}/ILSVRC2012_val_00000236.JPEG"],
            "validation",
            2,
        ),
        ([f"validation/{TENCH}/1.jpg", f"validation/{GOLDFISH}/2.jpg"], "validation", 2),
        ([f"test/{TENCH}/1.jpg", f"test/{GOLDFISH}/2.jpg", f"val/{TENCH}/3.jpg"], "test", 2),
        ([f"{TENCH}/1.jpg", f"{GOLDFISH}/2.jpg", f"{GOLDFISH}/deep/3.jpg"], "all", 3),
        ([f"train/{TENCH}/1.jpg", f"train/{GOLDFISH}/2.jpg", f"val/{TENCH}/3.jpg"], "validation", 1),
    ],
)
def test_a_folder_needs_no_training_images(tmp_path, files, split, count):
    test = DatasetConfig(str(write_images(tmp_path, *files))).load_test()
    assert (test.name, len(test.images), test.class_names) == (split, count, [TENCH, GOLDFISH])
    assert set(test.images.column_names) == {"image", "label"}


def test_the_layout_of_kaggles_imagenet_is_read_whole_or_from_the_validation_folder(tmp_path, capsys):
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    trained = [f"train/{name}/{name}_{number}.JPEG" for name in (TENCH, GOLDFISH) for number in range(20)]
    validated = [f"val/{name}/ILSVRC2012_val_{number}.JPEG" for name in (TENCH, GOLDFISH) for number in range(3)]
    write_images(root, *trained, *validated, "test/ILSVRC2012_test_1.JPEG")
    test = DatasetConfig(str(root)).load_test()
    assert (test.name, len(test.images)) == ("validation", 6)
    assert "not used: 1 file in no class folder" in capsys.readouterr().err
    alone = DatasetConfig(str(root / "val")).load_test()
    assert (alone.name, len(alone.images), alone.class_names) == ("all", 6, test.class_names)
    assert len(load_splits(str(root)).test) == 6  # a training tests on the same images


def test_parquet_files_need_no_training_images(tmp_path):
    test = DatasetConfig(str(write_parquet(tmp_path / "d", validation=[0, 1, 1]))).load_test()
    assert (test.name, test.images["label"][:]) == ("validation", [0, 1, 1])
    assert test.class_names == ["tench, Tinca tinca", "goldfish"]
    without = DatasetConfig(str(write_parquet(tmp_path / "files", images=[0, 1]))).load_test()
    assert (without.name, len(without.images)) == ("all", 2)


def test_a_test_split_without_labels_gives_way_to_the_validation_split(tmp_path, capsys):
    labels = {"train": [0, 1] * 20, "validation": [0, 1, 1], "test": [-1] * 4}
    folder = str(write_parquet(tmp_path / "d", **labels))
    test = DatasetConfig(folder).load_test()
    assert (test.name, test.images["label"][:]) == ("validation", [0, 1, 1])
    assert f"{folder}: the images of test have no labels, so those of validation are" in capsys.readouterr().err
    splits = load_splits(folder)
    assert (len(splits.train), len(splits.val), splits.test["label"][:]) == (36, 4, [0, 1, 1])


def test_these_are_the_images_that_a_training_tests_on(image_folder, splits):
    test = DatasetConfig(str(image_folder)).load_test()
    assert test.name == "test"
    assert test.images["image"] == splits.test["image"]
    held_out = DatasetConfig(str(image_folder), test_share=0.25).load_test()
    assert held_out.name == "25% of train"
    assert held_out.images["image"] == DatasetConfig(str(image_folder), test_share=0.25).load().test["image"]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["train/cat/1.jpg", "train/dog/2.jpg"], {}, "`dataset={}` has no test split, only train: add one, or set"),
        (["1.jpg", "2.jpg"], {}, "`dataset={}` has 0 columns of class labels: its images are in no class folder"),
        (["cat/1.jpg"], {}, "`dataset={}` has only one class"),
        (["cat/1.jpg", "dog/1.jpg"], {"group_column": "patient"}, "`group_column=patient` has no effect on the test"),
        (["cat/1.jpg", "dog/1.jpg"], {"label_column": "breed"}, "`label_column=breed` is not a class label of {}"),
        (["train/cat/1.jpg", "val/cat/1.jpg", "other/1.jpg"], {}, "`dataset={}`: the folder train is a split"),
    ],
)  # fmt: skip
def test_a_folder_without_usable_test_images_is_refused(tmp_path, files, options, message):
    write_images(tmp_path, *files)
    with pytest.raises(InputError) as caught:
        DatasetConfig(str(tmp_path), **options).load_test()
    assert str(caught.value).startswith(message.format(tmp_path))


def test_rows_without_a_label_are_refused(tmp_path):
    folder = write_parquet(tmp_path / "d", test=[0, -1])
    with pytest.raises(InputError, match=r"test has images without a label \(the first is row 1\)"):
        DatasetConfig(str(folder)).load_test()
