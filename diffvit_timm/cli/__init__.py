"""The console command `diffvit`: options, console output, errors."""

from .main import main

__all__ = ["main"]
