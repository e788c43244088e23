"""Train a Diff-ViT from scratch on small images: CIFAR-10 and -100, MNIST, Fashion-MNIST, BACH, or your own.

    python recipes/train_cifar.py --config mnist_nano             # 37 k parameters on MNIST
    python recipes/train_cifar.py --config cifar10_fast           # 0.5 M parameters on CIFAR-10
    python recipes/train_cifar.py --dataset FOLDER --epochs 1 --warmup-epochs 0.1 --max-train-samples 2000    # short

It is `diffvit train --config scratch`. With --model RUN it starts from the weights of a run. Expected, one seed each,
one CPU core: MNIST 99.37 %, CIFAR-10 (JPEG copy) 83.82 % with cifar10_fast and, with the head norm, Fashion-MNIST
91.97 % and cifar10_micro 81.32 % of the 10,000 test images. Commands and times: recipes/results/from_scratch.md.
"""

import sys

from diffvit_timm.cli import main

if __name__ == "__main__":
    main(["train", "--config", "scratch", *sys.argv[1:]])
