"""Train a Diff-ViT from scratch on small images: CIFAR-10 and -100, MNIST, Fashion-MNIST, BACH, or your own.

    python recipes/train_cifar.py --config recipes/configs/mnist_nano.yaml             # 37 k parameters on MNIST
    python recipes/train_cifar.py --config recipes/configs/fashion_mnist.yaml          # 0.2 M parameters
    python recipes/train_cifar.py --config recipes/configs/cifar10_micro.yaml          # 0.8 M parameters on CIFAR-10
    python recipes/train_cifar.py --config recipes/configs/cifar10_micro.yaml --attn plain             # its plain twin
    python recipes/train_cifar.py --dataset FOLDER --epochs 1 --warmup-epochs 0.1 --max-train-samples 2000   # a minute

Expected results, with hardware and seeds: recipes/README.md.
"""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.training.config import Optimizer, TrainConfig
from diffvit_timm.training.recipe import train

# Of each short name the options that it stands for.
DATASETS: dict[str, dict[str, Any]] = {
    "cifar10": {"dataset": "uoft-cs/cifar10"},
    "cifar100": {"dataset": "uoft-cs/cifar100", "label_column": "fine_label"},
    "mnist": {"dataset": "ylecun/mnist"},
    "fashion_mnist": {"dataset": "zalando-datasets/fashion_mnist"},
    "bach": {"dataset": "1aurent/BACH", "test_share": 0.25},  # 400 labelled images; those of its test split are not
}


ConfigT = TypeVar("ConfigT", bound=TrainConfig)


@dataclasses.dataclass(frozen=True)
class CifarConfig(TrainConfig):
    dataset: str = "cifar10"
    """cifar10, cifar100, mnist, fashion_mnist, bach; a name on the Hub, or a folder."""
    model: str = "diffvit_micro_patch4_32"
    """timm model name; the diffvit_nano and diffvit_micro variants are made for small images."""
    pretrained: bool = False
    """Load pretrained weights, where a model has some."""
    epochs: int = 50
    """Passes over the training images."""
    batch_size: int = 128
    """Images an update and process, all accumulation steps together."""
    opt: Optimizer = "nmuon"
    """timm's optimizer; adamw wants a smaller --lr, 2e-3 or so."""
    lr: float = 4e-3
    """Peak learning rate."""
    warmup_epochs: float = 3.0
    """Linear warm-up of the learning rate, before its cosine decay to zero."""
    layer_decay: float = 1.0
    """Learning rate of a block over that of the next one; 1: the same for all."""
    augment: str = "shift+flip"
    """none, or of crop, shift, flip, color, randaugment, autoaugment, trivialaugment, erase, cutout; joined by +."""
    workers: int = 0
    """Processes that load images; 0: none, which small images in memory need not."""


def named_dataset(config: ConfigT) -> ConfigT:
    """The configuration with what the dataset's short name stands for, but for what is given otherwise."""
    if Path(config.dataset).is_dir():  # a folder of that name
        return config
    options = DATASETS.get(config.dataset, {}).items()
    return dataclasses.replace(config, **{k: v for k, v in options if k == "dataset" or config.is_default(k)})


def main() -> dict:
    config = named_dataset(parse_config(CifarConfig, description=__doc__))
    return train(config, "train_cifar")


if __name__ == "__main__":
    run(main)
