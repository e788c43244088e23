"""Vary one thing over trainings from scratch, with differential and with plain attention.

    python recipes/ablate.py --study pos_embed                                   # CIFAR-10, 3 seeds, 24 trainings
    python recipes/ablate.py --study pos_embed --dataset mnist --model diffvit_nano --epochs 1 --seeds 1 \\
        --max-train-samples 1000                                                 # about two minutes on 2 CPU cores

It is `diffvit study ablation`, whose --help lists the studies. Measured tables with hardware, seeds and spread:
recipes/results/ablations.md.
"""

import sys

from diffvit_timm.cli import main

if __name__ == "__main__":
    main(["study", "ablation", *sys.argv[1:]])
