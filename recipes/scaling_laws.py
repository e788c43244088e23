"""Measure how the test loss falls with the size of the model, for differential and for plain attention.

    python recipes/scaling_laws.py --max-train-samples 20000 --epochs 2 --warmup-epochs 0.3 --batch-size 64 \\
        --augment flip --label-smoothing 0 --precision bf16 --model-kwargs head_norm=true
    python recipes/scaling_laws.py --sizes 32x1 64x1 --dataset mnist --img-size 28 --model-kwargs in_chans=1 \\
        --epochs 1 --seeds 1 --max-train-samples 1000                # a small check on a CPU

It is `diffvit study scaling`. Expected of the first command, CIFAR-10 (JPEG copy), 4 sizes, 3 seeds, 24 trainings, 71
minutes on one CPU core: at equal parameters, the loss of the paper's layer is 1.029 times that of plain attention (95 %
interval 1.016 to 1.042; n = 24). Tables, other learning rates and the default layer, which has no head norm:
recipes/results/scaling.md.
"""

import sys

from diffvit_timm.cli import main

if __name__ == "__main__":
    main(["study", "scaling", *sys.argv[1:]])
