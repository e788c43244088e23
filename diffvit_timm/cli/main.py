"""diffvit: convert, fine-tune, explain, measure and publish Vision Transformers with differential attention."""

import difflib
import importlib
import sys
from typing import NoReturn

from .. import __version__
from ..console import discard, printable

__all__ = ["COMMANDS", "main"]

# One line about each command. Its options and its code are in commands/, in a module of the same name.
COMMANDS = {
    "train": "fine-tune or train a model on a dataset",
    "convert": "convert a pretrained ViT, and report what the conversion kept",
    "predict": "name the most likely classes of images",
    "explain": "draw what a model attends to on images",
    "explore": "open a local web page that shows what models attend to on your images",
    "segment": "train a semantic segmentation head on networks, and compare them",
    "compare conversions": "measure what each conversion keeps, before any training",
    "compare coverage": "list which pretrained transformers of timm convert, and how exactly",
    "compare clip": "compare CLIP's zero-shot classifier, converted CLIP and a supervised network",
    "compare faithfulness": "measure whether heat maps show what a network uses",
    "compare probes": "classify by the features of frozen networks: k-NN and linear probes",
    "compare attacks": "measure the accuracy of networks under attack, each through its own gradients",
    "compare robustness": "measure the accuracy of networks on corrupted images",
    "benchmark models": "time networks in several precisions and batch sizes",
    "benchmark attention": "time differential attention beside plain attention",
    "benchmark training": "time this trainer beside timm's training loop",
    "benchmark gpu": "check and time the kernels, the networks and the trainer on a GPU, and write a report",
    "study ablation": "vary one thing over many trainings",
    "study compare": "compare trainings at their best learning rates by a protocol, over paired seeds",
    "study presets": "train the networks of several presets, and draw their losses together",
    "study rates": "find a learning rate by several short trainings",
    "study scaling": "measure how the loss falls with the size of the model",
    "export": "write a network as ONNX or torch.export",
    "push": "push a run to the Hub",
    "pull": "fetch a run from the Hub",
    "timm": "run a script of timm's repository, such as validate.py, with our models",
}

# Packages of the extra [train], which the core of the package does without.
EXTRA_PACKAGES = (
    "accelerate", "albumentations", "datasets", "dotenv", "filelock", "matplotlib", "psutil", "pyarrow", "rich",
    "scipy", "sklearn", "tyro"
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Run a command of the command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        _print(_help())
        return
    if argv[0] == "--version":
        _print(f"diffvit_timm {__version__}")
        return
    name = next((command for command in COMMANDS if argv[: len(command.split())] == command.split()), None)
    if name is None:
        _stop_unknown(argv)
    try:
        if name == "timm":  # the script parses its own options
            importlib.import_module(".commands.timm", __package__).main(argv[1:])
            return
        from .console import run  # not above: it needs tyro

        module = importlib.import_module(f".commands.{name.replace(' ', '_')}", __package__)
        run(module.Options, module.main, argv[len(name.split()) :], module.__doc__ or "", f"diffvit {name}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_PACKAGES:
            raise
        _stop(f"diffvit {name} needs {package}: pip install 'diffvit_timm[train]'")


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader has gone, as in `diffvit --help | head`
        discard(sys.stdout)
        sys.exit(1)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}s}  {what}" for name, what in COMMANDS.items()]
    end = (
        "diffvit COMMAND --help explains the options of a command.\n"
        "diffvit train --demo converts and fine-tunes a small ViT on bundled images in about two minutes."
    )
    return "\n".join(["usage: diffvit COMMAND [OPTIONS]", "", *lines, "", end])


def _stop_unknown(argv: list[str]) -> NoReturn:
    """Name the command that was probably meant."""
    words = [command for command in COMMANDS if command.split()[0] == argv[0]]
    if words:
        _stop(f"diffvit {argv[0]} needs a second word: {', '.join(word.split()[1] for word in words)}")
    firsts = list(dict.fromkeys(command.split()[0] for command in COMMANDS))
    close = difflib.get_close_matches(argv[0], firsts, n=1)
    advice = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(firsts)}"
    _stop(f"{argv[0]} is not a command of diffvit: {advice}")


def _stop(cause: str) -> NoReturn:
    print(f"error: {printable(cause)}", file=sys.stderr)
    sys.exit(2)
