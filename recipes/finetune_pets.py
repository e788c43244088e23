"""Fine-tune a Diff-ViT, converted from pretrained weights, on the 37 breeds of Oxford-IIIT Pet.

    accelerate launch recipes/finetune_pets.py                    # DeiT-Ti and Pets from the Hub
    accelerate launch recipes/finetune_pets.py --attn plain       # its plain twin under the same options
    accelerate launch recipes/finetune_pets.py --demo             # no download, about two minutes on 2 CPU cores

It is `diffvit train --config pets`. Expected on Pets (partial), 3 seeds, 2 CPU cores: 89.6 +- 0.7 % of the test images,
the plain twin 90.0 +- 0.2 %. Commands and spread: recipes/results/fine_tuning.md.
"""

import sys

from diffvit_timm.cli import main

if __name__ == "__main__":
    main(["train", "--config", "pets", *sys.argv[1:]])
