"""Name the most likely classes of images.

    diffvit predict cat.jpg dog.jpg --model RUN
    diffvit predict PHOTOS --model RUN --csv predictions.csv               # all images below a folder, as a table
    diffvit predict test/*/*.jpg --model RUN --picture predictions.png     # and draw them, with right and wrong ones

Each image is resized, cropped and normalised as in the model's evaluation. The name of an image's folder is its true
class, if it is a class of the model. An image that does not decode is named and left out; the others are classified,
and the exit code is 2. In the CSV file, a name that a spreadsheet would compute has an apostrophe in front.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from ...console import counted, log0, printable, track
from ...data.image_files import image_files
from ...errors import InputError, require_at_least
from ...files import csv_file, require_writable, spreadsheet_text
from ...inspection.classification import Classified, classify_files
from ...inspection.figures import PredictedImage, plot_predictions
from ...inspection.naming import model_title
from ...inspection.saving import save_figure
from ...models.outputs import class_names
from ...models.pretrained import short_names
from ...options import CheckedOptions
from ..images import load_for_inference, read_image

SHOWN_CLASSES = 3  # likeliest classes per image in the picture
LARGEST_SIDE = 400  # pixels of an image in the picture
MOST_IMAGES = 60
DIGITS = 6  # decimals of a probability in the CSV file


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]
    """Image files, or folders: all images below a folder except hidden ones, in the order of their paths."""
    model: str
    """timm model name with its pretrained tag, hf-hub:NAME, a folder of weights, or a run folder."""
    top: int = 5
    """Number of classes per image."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    batch_size: int = 32
    """Number of images that are classified together."""
    workers: int = 0
    """Number of processes that load images; 0: this process loads them."""
    json: bool = False
    """Print JSON."""
    csv: Path | None = None
    """New CSV file with one row per image: its path, its likeliest classes, its true class if known, or its error."""
    picture: Path | None = None
    """New PNG file with the images, their likeliest classes and, where known, their true class; at most 60 images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, top=self.top, batch_size=self.batch_size)
        require_at_least(0, workers=self.workers)
        self.require("images", bool(self.images), "is empty: name at least one file or folder")
        for path in self.images:
            if not (path.is_file() or path.is_dir()):
                raise InputError(f"`images={path}` is neither a file nor a folder: check the path")
        for name, suffix in (("csv", ".csv"), ("picture", ".png")):
            self._check_new_file(name, suffix)

    def _check_new_file(self, name: str, suffix: str) -> None:
        if (given := getattr(self, name)) is None:
            return
        path, kind = given.expanduser(), suffix[1:].upper()
        self.require(name, path.suffix.lower() == suffix, f"must be a {kind} file: end its name with {suffix}")
        self.require(name, not path.exists(), "exists already: choose another file")
        self.require(
            name, path.parent.is_dir(), f"needs the folder {path.parent}, which does not exist: create it first"
        )
        require_writable(path.parent, f"`{name}={given}`")

    def find_images(self) -> list[Path]:
        """Return every image once.

        Raises:
            InputError: a folder without images, or more images than the picture shows.
        """
        found: dict[Path, None] = {}
        for path in self.images:
            paths = image_files(path) if path.is_dir() else [path]
            if not paths:
                raise InputError(f"`images={path}` has no images below it: give image files, or a folder with some")
            found |= dict.fromkeys(paths)
        if self.picture is not None and len(found) > MOST_IMAGES:
            raise InputError(
                f"`picture={self.picture}` shows at most {MOST_IMAGES} images, not {len(found)}: give fewer"
            )
        return list(found)


class Tally:
    """Counts the images, those whose class is known, the right ones among them, and those that do not decode."""

    def __init__(self) -> None:
        self.images = self.known = self.right = self.left_out = 0

    def add(self, result: Classified) -> None:
        self.left_out += bool(result.error)
        self.images += not result.error
        if result.true is not None:
            self.known += 1
            self.right += result.predicted[0][0] == result.true[0]

    def result(self) -> str:
        """Return how many images are right, in words."""
        text = f"{self.right:,} of {self.known:,} right" if self.known else "true classes not known"
        if 0 < self.known < self.images:
            text += f", {self.images - self.known:,} of unknown class"
        return text

    def __str__(self) -> str:
        return f"{counted(self.images, 'image')} with their predictions: {self.result()}"


def main(options: Options) -> None:
    paths = options.find_images()
    network, transform, mode = load_for_inference(options.model, options.device)
    if not network.num_classes:
        raise InputError(f"`model={options.model}` has no head, so it cannot name classes: give a classifier")
    names = class_names(network) or [f"class {i}" for i in range(network.num_classes)]
    top = min(options.top, len(names))
    results = classify_files(
        network, transform, mode, names, paths, max(top, SHOWN_CLASSES), options.batch_size, options.workers
    )
    if options.csv is not None or options.json:  # otherwise the printed predictions show the progress
        results = track(results, "classified", len(paths))
    tally = Tally()
    predictions: dict[str, Sequence] = {}
    drawn: list[PredictedImage] = []
    with _table(options.csv, top) as write_row:
        for result in results:
            tally.add(result)
            if result.error is not None:
                if len(paths) == 1:
                    raise result.error
                log0(f"left out: {result.error}")
            write_row(result)
            if result.error is None and options.json:
                predictions[str(result.path)] = result.predicted[:top]
            elif result.error is None and options.csv is None:
                _print(result, top)
            if result.error is None and options.picture is not None:
                drawn.append(_with_image(result, mode))
    if options.csv is not None:
        log0(f"{options.csv}: {tally}")
    if options.picture is not None and drawn:
        title = model_title(short_names([options.model])[0], network)
        heading = f"Predictions of {title}\n{counted(tally.images, 'image')}: {tally.result()}"
        save_figure(plot_predictions(drawn, heading), options.picture.expanduser())
        log0(f"{options.picture}: {tally}")
    if options.json:
        print(json.dumps(predictions))
    if tally.left_out:
        raise InputError(
            f"{tally.left_out:,} of {counted(len(paths), 'image')} did not decode; the lines above that begin with "
            "'left out' name them and say why"
        )


@contextlib.contextmanager
def _table(path: Path | None, top: int) -> Iterator[Callable[[Classified], None]]:
    """Write the CSV file, if there is one; yields the function that writes the row of an image."""
    if path is None:
        yield lambda result: None
        return
    file = path.expanduser()
    classes = [name for i in range(2, top + 1) for name in (f"class_{i}", f"probability_{i}")]
    columns = ["path", "class", "probability", *classes, "true_class", "error"]

    def write(result: Classified) -> None:
        cells: list = [str(result.path)]
        for name, share in result.predicted[:top]:
            cells += [name, round(share, DIGITS)]
        cells += [""] * (len(columns) - 2 - len(cells))  # of an image that does not decode
        cells += [result.true[0] if result.true else "", str(result.error or "")]
        texts = [spreadsheet_text(cell) if isinstance(cell, str) else cell for cell in cells]
        write_row(dict(zip(columns, texts, strict=True)))

    with csv_file(file, columns) as write_row:
        yield write


def _print(result: Classified, top: int) -> None:
    print(_shown(result.path))
    print("\n".join(f"  {share:6.1%}  {printable(name)}" for name, share in result.predicted[:top]))


def _with_image(result: Classified, mode: str) -> PredictedImage:
    """Return a prediction with its image, small, for the picture."""
    image = read_image(result.path, mode)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return PredictedImage(image, result.predicted[:SHOWN_CLASSES], result.true, _shown(Path(result.path.name)))


def _shown(path: Path) -> str:
    """Return a path as it can be printed, also if it is not UTF-8."""
    return printable(str(path).encode("utf-8", "backslashreplace").decode())
