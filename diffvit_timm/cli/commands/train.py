"""Fine-tune or train a timm model on an image classification dataset.

    diffvit train --demo                                      # about two minutes, no download
    diffvit train --config pets                               # DeiT-Ti, converted, on Oxford-IIIT Pet
    diffvit train --config pets --dataset FOLDER              # your images: train/CLASS/*.jpg and test/CLASS/*.jpg
    diffvit train --config pets --dataset FOLDER --label-column Smiling,Male    # several labels per image
    diffvit train --config pets --attn plain                  # the plain twin under the same options
    diffvit train --config pets --model vit_small_patch16_dinov3.lvd1689m --attn diff_v2 --img-size 224    # another ViT
    diffvit train --config cifar10_micro                      # from scratch
    diffvit train --resume RUN                                # continue a run, under its own options
    diffvit train --resume RUN --epochs 20                    # or train a finished one for longer, 20 epochs in all
    diffvit train --config pets --trackers wandb              # curves and pictures in W&B; first: pip install wandb
    accelerate launch -m diffvit_timm train --config pets     # on several GPUs

Images are turned upright by their EXIF orientation, and transparent pixels become white. 16-bit greyscale images whose
values are all at most 4095 are read as 12-bit images. Animations and multi-page files give their first frame.

The training uses the GPU if there is one. --config takes the name of a preset, or a YAML file with a line such as
"lr: 0.001" per option; the other options override it. An entry of --model-kwargs overrides only the entry with the same
name. A preset gives --dataset and --model, and changes some of the defaults below. Presets: bach_10m, cifar10_fast,
cifar10_full, cifar10_micro, cifar100_10m, demo, fashion_mnist, mnist_nano, pets, pets_probe, scratch, and in folders
bach/diff_10m, diff_25m, diff_50m, plain_10m, plain_25m, plain_50m, the same in cifar100/, and mnist/diff, diff_v2,
plain, balanced, the same in cifar10/.
"""

import dataclasses
from typing import Annotated

import tyro

from ...training.config import TrainConfig
from ..push_again import push_command
from ..summary import print_summary


@dataclasses.dataclass(frozen=True)
class Options:
    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    demo: bool = False
    """Pretrain, convert and fine-tune on scikit-learn's digits, with its own data, models and numbers of epochs."""


def main(options: Options) -> dict:
    if options.demo:
        from ...training.demo import demo  # not above: --help does not wait for it

        result = demo(options.train)
    else:
        from ...training.recipe import train

        with push_command():
            result = train(options.train, "train", multi_label=True)
    print_summary(result)
    return result
