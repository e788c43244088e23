"""The images that were looked at last, through all networks of the explorer."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from ..data.decoding import decode_image
from .network import ExploredNetwork
from .view import NetworkView, look

__all__ = ["Session"]

KEPT = 4  # images whose maps stay in memory: 11 MiB each for a DeiT-Ti, 370 MiB for a ViT-B at 384 pixels


class Session:
    """Looks at images through the networks, and keeps the maps of the last few images.

    Its methods can be called from several threads; they wait for each other.

    Args:
        networks: networks of the explorer.
    """

    def __init__(self, networks: Sequence[ExploredNetwork]) -> None:
        self.networks = list(networks)
        self._views: OrderedDict[str, list[NetworkView]] = OrderedDict()
        self._lock = threading.Lock()

    def views(self, path: str) -> list[NetworkView]:
        """Return the view of each network on an image file. The maps of an image are computed once.

        Args:
            path: image file, which does not change.

        Raises:
            InputError: the file cannot be decoded, or the image is too long and narrow for a network.
        """
        with self._lock:
            if path not in self._views:
                # Named by its file only, because the folder is one of the page's own.
                data = {"bytes": Path(path).read_bytes(), "path": None}
                image = decode_image(data, "RGB", Path(path).name)
                self._views[path] = [look(network, image) for network in self.networks]
            self._views.move_to_end(path)
            while len(self._views) > KEPT:
                self._views.popitem(last=False)
            return self._views[path]
