"""CLIP as a zero-shot classifier: the classes are given by their names, and no training images are needed.

`Learning Transferable Visual Models From Natural Language Supervision` - https://arxiv.org/abs/2103.00020, section 3.1
"""

import contextlib
import dataclasses
import difflib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import cached_assets_path
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InputError
from .imagenet_names import readable

__all__ = [
    "PREFIX",
    "Clip",
    "ImageTower",
    "check_architecture",
    "check_clip",
    "load_clip",
    "names_weights",
    "random_clip",
    "require_open_clip",
    "zero_shot_classifier",
    "zero_shot_logits",
]

PREFIX = "clip:"  # of the name of a CLIP model, where a timm model could stand too


@dataclasses.dataclass(frozen=True)
class Clip:
    """A CLIP model of open_clip.

    Attributes:
        model: model with encode_image and encode_text, in evaluation mode.
        transform: function that turns an image into a normalised tensor, (C, H, W).
        tokenize: function that turns n sentences into tokens, (n, context length).
        name: name in open_clip, or name of the folder.
    """

    model: Any
    transform: Callable
    tokenize: Callable[[Sequence[str]], Tensor]
    name: str


class ImageTower(nn.Module):
    """The image tower of a CLIP model as a network of its own: images (B, C, H, W) -> embeddings (B, dim).

    Args:
        visual: attribute `visual` of a model of open_clip.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        embeddings = self.visual(images)
        return embeddings[0] if isinstance(embeddings, tuple) else embeddings  # CoCa's tower also returns its tokens


def require_open_clip() -> Any:
    """Import and return open_clip.

    Raises:
        InputError: open_clip is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise InputError("CLIP needs open_clip: pip install 'diffvit_timm[clip]'") from error
    return open_clip


def _folder(name: str) -> Path:
    return Path(name.removeprefix("local-dir:")).expanduser()


def names_weights(name: str) -> bool:
    """Return whether the name of a CLIP model says which weights it has: a tag, a repository or a folder."""
    name = name.removeprefix(PREFIX)
    return ":" in name or _folder(name).is_dir()


def check_clip(name: str, parameter: str = "clip") -> tuple[str, str | None]:
    """Check that a CLIP model exists, before anything is downloaded. A repository on the Hub is not checked.

    Args:
        name: ARCHITECTURE:TAG of open_clip, hf-hub:NAME, or a folder with an open_clip_config.json; clip: may stand
            in front of each.
        parameter: name of the user's parameter, for the errors.

    Returns:
        The name by which open_clip creates the model, and the tag of its weights; None for a folder or a repository.

    Raises:
        InputError: open_clip is not installed or does not know the name or tag, or the folder has no CLIP model.
    """
    require_open_clip()
    own = name.removeprefix(PREFIX)
    folder = _folder(own)
    if folder.is_dir() or own.startswith("local-dir:"):
        if not (folder / "open_clip_config.json").is_file():
            raise InputError(
                f"`{parameter}={name}` has no open_clip_config.json: give the folder of an open_clip model"
            )
        return f"local-dir:{folder}", None
    if own.startswith("hf-hub:"):
        return own, None
    architecture = check_architecture(name, parameter)
    return architecture, _check_tag(name, parameter, architecture, own.partition(":")[2])


def check_architecture(name: str, parameter: str = "clip") -> str:
    """Return the architecture that the name of a CLIP model begins with, if open_clip knows it.

    Args:
        name, parameter: as in `check_clip`; the tag may be missing.

    Raises:
        InputError: open_clip is not installed or does not know the architecture.
    """
    known = require_open_clip().list_models()
    prefix = PREFIX if name.startswith(PREFIX) else ""
    architecture = name.removeprefix(prefix).partition(":")[0]
    if architecture not in known:
        close = [prefix + match for match in difflib.get_close_matches(architecture, known, n=3)]
        forms = (
            f"give {prefix}ARCHITECTURE:TAG, {prefix}hf-hub:NAME or {prefix or 'a '}{'FOLDER' if prefix else 'folder'}"
        )
        fix = f"did you mean {' or '.join(close)}?" if close else forms
        raise InputError(f"`{parameter}={name}` is not known to open_clip: {fix}")
    return architecture


def _check_tag(name: str, parameter: str, architecture: str, tag: str) -> str:
    tags = require_open_clip().list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        start = f"{PREFIX if name.startswith(PREFIX) else ''}{architecture}"
        choices = ", ".join(f"{start}:{known}" for known in tags) or "no weights for it"
        raise InputError(f"`{parameter}={name}` needs a known tag of its weights: open_clip has {choices}")
    return tag


def load_clip(name: str, parameter: str = "clip") -> Clip:
    """Load a CLIP model by its name.

    Args:
        name, parameter: as in `check_clip`.

    Raises:
        InputError: as `check_clip`, or the weights cannot be loaded, or the model has no text tower.
    """
    architecture, tag = check_clip(name, parameter)
    open_clip = require_open_clip()
    # Some weights need the sigmoid approximation of GELU. open_clip sets it only if the caller asks for it.
    quick = tag is not None and open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
    try:
        with _without_logging():
            model, _, transform = open_clip.create_model_and_transforms(architecture, tag, force_quick_gelu=quick)
            tokenize = open_clip.get_tokenizer(architecture)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"`{parameter}={name}` cannot be loaded ({type(error).__name__}): {error}") from error
    if not hasattr(model, "encode_text") or not hasattr(model, "encode_image"):
        raise InputError(f"`{parameter}={name}` has no text tower for the class names: give a CLIP model")
    own = name.removeprefix(PREFIX)
    return Clip(model.eval(), transform, tokenize, _folder(own).name if _folder(own).is_dir() else own)


def random_clip(name: str) -> Clip:
    """Create a CLIP model with random weights, whose speed and memory are those of trained ones.

    Args:
        name: ARCHITECTURE of open_clip; clip: may stand in front of it.
    """
    architecture, open_clip = check_architecture(name), require_open_clip()
    with _without_logging():
        model, _, transform = open_clip.create_model_and_transforms(architecture)
        return Clip(model.eval(), transform, open_clip.get_tokenizer(architecture), architecture)


@contextlib.contextmanager
def _without_logging() -> Iterator[None]:
    """Context manager: hide the log lines of open_clip, which repeat its errors."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@torch.inference_mode()
def zero_shot_classifier(
    clip: Clip, names: Sequence[str], templates: Sequence[str], cache: Path | None = None
) -> Tensor:
    """Compute the weights of a linear classifier from the names of its classes.

    The row of a class is the mean direction of its sentences: each sentence embedding is normalised, then averaged,
    then normalised again. The result is cached on disk under a fingerprint of the text tower's weights, the names and
    the templates.

    Args:
        clip: CLIP model, whose text tower embeds the sentences.
        names: class names, in the order of the labels.
        templates: sentences with {} in place of the class name.
        cache: folder of the cache; None for a folder in the cache of huggingface_hub.

    Returns:
        The weights, (classes, dim), with rows of length 1.
    """
    cache = cache or cached_assets_path("diffvit_timm", namespace="zero_shot")
    path = cache / f"{_fingerprint(clip.model, names, templates)}.safetensors"
    if path.exists():
        return load_file(path)["classifier"]
    device = next(clip.model.parameters()).device
    rows = []
    for name in names:
        # str.format would fail on other braces in a template.
        tokens = clip.tokenize([template.replace("{}", readable(name)) for template in templates]).to(device)
        sentences = F.normalize(clip.model.encode_text(tokens).float(), dim=-1)  # (templates, dim)
        rows.append(F.normalize(sentences.mean(dim=0), dim=-1))
    classifier = torch.stack(rows).cpu()
    temporary = path.with_suffix(".part")  # renamed when complete, so that no reader finds a part of it
    save_file({"classifier": classifier}, temporary)
    temporary.replace(path)
    return classifier


def _fingerprint(model: nn.Module, names: Sequence[str], templates: Sequence[str]) -> str:
    # Equal weights with another activation (GELU or QuickGELU) give other embeddings, so the module types count too.
    kinds = [type(module).__name__ for name, module in model.named_modules() if not name.startswith("visual")]
    digest = hashlib.sha256(repr((list(names), list(templates), kinds)).encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith("visual."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def zero_shot_logits(embeddings: Tensor, classifier: Tensor, scale: float) -> Tensor:
    """Compute the logits of images: the scaled cosine similarities to the classes.

    Args:
        embeddings: outputs of the image tower, (B, dim).
        classifier: weights from `zero_shot_classifier`, (classes, dim).
        scale: factor of the similarities, exp(logit_scale) of the CLIP model.

    Returns:
        The logits, (B, classes), float32.
    """
    return scale * F.normalize(embeddings.float(), dim=-1) @ classifier.to(embeddings.device).T
