"""Vary one thing over trainings from scratch, with differential and with plain attention.

    python recipes/ablate.py --study pos_embed                                   # CIFAR-10, 3 seeds, 24 trainings
    python recipes/ablate.py --study pos_embed --dataset mnist --model diffvit_nano --epochs 8 \\
        --max-train-samples 5000 --batch-size 64 --lr 1e-2 --warmup-epochs 1 --augment shift --label-smoothing 0 \\
        --precision bf16 --model-kwargs head_norm=true                           # 75 seconds per training on one core
    python recipes/ablate.py --study pos_embed --dataset mnist --model diffvit_nano --epochs 1 --seeds 1 \\
        --max-train-samples 1000                                                 # a small check on a CPU

It is `diffvit study ablation`, whose --help lists the studies. Expected of the second command, 3 seeds, one CPU core:
93.60 ± 0.23 % of the 10,000 test digits with a learned position embedding, the plain twin 93.45 ± 0.28 %. All tables,
with the difference per setting and a warning about the one learning rate: recipes/results/ablations.md.
"""

import sys

from diffvit_timm.cli import main

if __name__ == "__main__":
    main(["study", "ablation", *sys.argv[1:]])
