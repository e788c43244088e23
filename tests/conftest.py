"""Fixtures: small image folders made here, and the real data and weights beside the repository where they are."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
CLASS_NAMES = ["cat", "dog", "owl"]

# Before torch is imported, which reads it once: each worker of pytest-xdist computes on one core.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# Before anything imports huggingface_hub or datasets, which read them once: no test reaches for a network, and none
# reads or fills the caches of whoever runs it.
_cache = tempfile.mkdtemp(prefix="diffvit-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # which the first to load a dataset would see
os.environ["HF_ASSETS_CACHE"] = f"{_cache}/assets"
os.environ["HF_DATASETS_CACHE"] = f"{_cache}/datasets"
os.environ["HF_HUB_CACHE"] = str(SHARED / "hub") if (SHARED / "hub").is_dir() else f"{_cache}/hub"


def small_image(label: int, seed: int) -> Image.Image:
    """Noise of 16 x 16 to 40 x 40 pixels with one brighter colour channel, which is the class."""
    rng = np.random.default_rng((label, seed))
    width, height = rng.integers(16, 41, size=2)
    pixels = rng.integers(0, 120, size=(height, width, 3), dtype=np.uint8)
    pixels[..., label] += 30
    return Image.fromarray(pixels)


def write_image_folder(folder: Path, **images_per_class: int) -> Path:
    """Write one folder per split with one folder per class in it: write_image_folder(path, train=12, test=6)."""
    for number, (split, count) in enumerate(images_per_class.items()):
        for label, name in enumerate(CLASS_NAMES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                small_image(label, 1000 * number + i).save(folder / split / name / f"{name}-{i:02d}.png")
    return folder


@pytest.fixture
def make_image_folder(tmp_path):
    """Function: images a class of each split -> folder."""
    return lambda **images_per_class: write_image_folder(tmp_path / "images", **images_per_class)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same random numbers, in whatever order and process the tests run."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """3 classes; 36 train and 18 test images; no validation split."""
    return write_image_folder(tmp_path_factory.mktemp("animals"), train=12, test=6)


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory) -> Path:
    """White bars on black of 12 x 12 pixels, upright, level or both; 30 train and 6 test images."""
    folder = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 10), ("test", 2)):
        for label, name in enumerate(("upright", "level", "cross")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.zeros((12, 12), np.uint8)
                if label != 1:
                    pixels[2:-2, 1 + number] = 255
                if label != 0:
                    pixels[10 - number, 2:-2] = 255
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def write_parquet(images: Path, folder: Path) -> Path:
    from datasets import load_dataset

    for split, data in load_dataset(str(images)).items():
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="session")
def parquet_folder(image_folder, tmp_path_factory) -> Path:
    """The same images as parquet files."""
    return write_parquet(image_folder, tmp_path_factory.mktemp("animals-parquet"))


@pytest.fixture(scope="session")
def stream_folder(tmp_path_factory) -> Path:
    """Parquet files of 36 train and 30 test images."""
    images = write_image_folder(tmp_path_factory.mktemp("many-animals"), train=12, test=10)
    return write_parquet(images, tmp_path_factory.mktemp("many-animals-parquet"))


@pytest.fixture(scope="session")
def splits(image_folder):
    """32 train, 4 val and 18 test images of 3 classes."""
    from diffvit_timm.data.datasets import load_splits

    return load_splits(str(image_folder))


@pytest.fixture(scope="session")
def tiny_model():
    """Function: keyword arguments -> a Diff-ViT of 3 classes and 16 x 16 images, the same weights every time."""
    import timm
    import torch

    import diffvit_timm  # noqa: F401

    def make(**kwargs):
        torch.manual_seed(0)
        shape = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
        return timm.create_model("diffvit_tiny_patch16", **{**shape, **kwargs})

    return make


@pytest.fixture
def saved_figures(monkeypatch) -> list:
    """The figures of matplotlib that are saved from now on, which are written as ever."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


@pytest.fixture
def undrawn_figures(monkeypatch) -> None:
    """Figures are made, with 2 test images, but saved as one white pixel: to draw them is most of a tiny training.

    For tests that read no picture; other tests of training and inspection draw the same figures.
    """
    from matplotlib.figure import Figure

    monkeypatch.setattr("diffvit_timm.training.predictions.IMAGES", 2)
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: Image.new("RGB", (1, 1), "white").save(path, format="png")
    )


@pytest.fixture(scope="session")
def pets() -> Path:
    """A part of Oxford-IIIT Pet: parquet files with the columns and class names of the Hub's timm/oxford-iiit-pet."""
    folder = SHARED / "datasets" / "oxford-iiit-pet"
    if not folder.is_dir():
        pytest.skip(f"no Oxford-IIIT Pet in {folder}")
    return folder


@pytest.fixture(scope="session")
def hub_cache() -> Path:
    """A Hub cache with timm/deit_tiny_patch16_224.fb_in1k; HF_HUB_CACHE points to it."""
    folder = SHARED / "hub"
    if not folder.is_dir():
        pytest.skip(f"no Hub cache in {folder}")
    return folder


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory):
    """Function: name, options of the image tower -> the folder of a CLIP model of random weights, for open_clip."""

    def make(name, **vision_cfg) -> Path:
        import json

        import open_clip
        import torch
        from safetensors.torch import save_file

        folder = tmp_path_factory.mktemp(name)
        model_cfg = {
            "embed_dim": 24,
            "vision_cfg": vision_cfg,
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        }
        torch.manual_seed(0)
        weights = {name: tensor.contiguous() for name, tensor in open_clip.CLIP(**model_cfg).state_dict().items()}
        save_file(weights, folder / "open_clip_model.safetensors")
        preprocessing = {"size": vision_cfg["image_size"], "mean": [0.5] * 3, "std": [0.5] * 3}
        config = {"model_cfg": model_cfg, "preprocess_cfg": preprocessing}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture(scope="session")
def clip_folder(make_clip) -> Path:
    """A CLIP model of random weights, images of 16 x 16."""
    return make_clip("clip", image_size=16, layers=2, width=32, head_width=16, patch_size=8)


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory):
    """Function: number of processes, source of a program, its arguments -> run it on the CPU in so many processes."""

    # The threads of gloo can abort a process while its interpreter shuts down, although its work is done: PyTorch keeps
    # them until then. So a program leaves without a shutdown.
    leave = "\nimport os, sys\nsys.stdout.flush()\nsys.stderr.flush()\nos._exit(0)\n"

    def run(processes, source, *arguments):
        script = tmp_path_factory.mktemp("program") / "program.py"
        script.write_text(source + leave)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        program = [*command, str(script), *map(str, arguments)]
        done = subprocess.run(program, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    return run
