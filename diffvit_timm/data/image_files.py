"""Find the image files below a folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from ..console import log0

__all__ = ["files_below", "image_files", "is_image"]


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, in the order of their paths; the rule is that of `is_image`."""
    return sorted(path for path in files_below(folder) if is_image(path.relative_to(folder).parts))


def is_image(parts: Sequence[str]) -> bool:
    """Return whether Pillow reads files of this kind, and neither the file nor a folder above it is hidden.

    Args:
        parts: names of the folders from the folder that the user gave down to the file, and the name of the file.
    """
    kind = Image.registered_extensions().get(Path(parts[-1]).suffix.lower())
    return kind in Image.OPEN and not any(part.startswith((".", "__MACOSX")) for part in parts)


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder, in no order.

    Links to folders are followed, unless they lead back to a folder above them.

    Args:
        folder: folder to walk.
        above: the resolved folders above it, for the recursion.
    """
    real = folder.resolve()
    if real in above:
        return
    try:
        entries = list(folder.iterdir())
    except PermissionError:  # such as lost+found
        log0(f"{folder} cannot be read: it is left out")
        return
    for entry in entries:
        if entry.is_dir():
            yield from files_below(entry, (*above, real))
        elif entry.is_file() or entry.is_symlink():  # a link to a missing file is reported when it is read
            yield entry
