"""Differential Vision Transformers for timm: importing this package registers the `diffvit_*` models.

Its names (__init__.pyi) are imported where they are first used, so that the help of a recipe need not wait for torch.
"""

import sys

import lazy_loader

from .registration import RegisterAfterTimm

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if "timm" in sys.modules:
    from . import diffvit  # noqa: F401
else:
    sys.meta_path.insert(0, RegisterAfterTimm())
