"""python -m diffvit_timm is the console command diffvit."""

from .cli import main

if __name__ == "__main__":
    main()
