"""Registers the models with timm, whichever is imported first, without importing timm."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["RegisterAfterTimm"]


class RegisterAfterTimm(MetaPathFinder):
    """A finder of sys.meta_path that finds timm where the others do, and imports our models right after it.

    Where one of our own modules imports timm, the models wait until that module is whole: they may need it.
    """

    def __init__(self) -> None:
        self._ours = 0  # modules of this package that are being imported, one by another

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        ours = fullname.startswith(f"{__package__}.")
        if fullname != "timm" and not ours:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)  # somebody may only have asked where timm is
        if spec and spec.loader:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                self._ours += ours
                try:
                    load(module)
                finally:
                    self._ours -= ours
                if not self._ours and "timm" in sys.modules:
                    self._register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _register(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        importlib.import_module(".diffvit", __package__)
