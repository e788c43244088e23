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
from .prompts import readable

__all__ = ["Clip", "check_clip", "load_clip", "require_open_clip", "zero_shot_classifier", "zero_shot_logits"]


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


def check_clip(name: str, parameter: str = "clip") -> tuple[str, str | None]:
    """Check that a CLIP model exists, before anything is downloaded. A repository on the Hub is not checked.

    Args:
        name: ARCHITECTURE:TAG of open_clip, hf-hub:NAME, or a folder with an open_clip_config.json.
        parameter: name of the user's parameter, for the errors.

    Returns:
        The name by which open_clip creates the model, and the tag of its weights; None for a folder or a repository.

    Raises:
        InputError: open_clip is not installed or does not know the name or tag, or the folder has no CLIP model.
    """
    open_clip = require_open_clip()
    folder = _folder(name)
    if folder.is_dir() or name.startswith("local-dir:"):
        if not (folder / "open_clip_config.json").is_file():
            raise InputError(
                f"`{parameter}={name}` has no open_clip_config.json: give the folder of an open_clip model"
            )
        return f"local-dir:{folder}", None
    return (name, None) if name.startswith("hf-hub:") else _architecture_and_tag(name, parameter, open_clip)


def _folder(name: str) -> Path:
    return Path(name.removeprefix("local-dir:")).expanduser()


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
    folder = _folder(name)
    return Clip(model.eval(), transform, tokenize, folder.name if folder.is_dir() else name)


@contextlib.contextmanager
def _without_logging() -> Iterator[None]:
    """Context manager: hide the log lines of open_clip, which repeat its errors."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _architecture_and_tag(name: str, parameter: str, open_clip: Any) -> tuple[str, str]:
    """Split ARCHITECTURE:TAG, and check that open_clip knows both."""
    architecture, _, tag = name.partition(":")
    if architecture not in open_clip.list_models():
        close = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        fix = f"did you mean {' or '.join(close)}?" if close else "give ARCHITECTURE:TAG, hf-hub:NAME or a folder"
        raise InputError(f"`{parameter}={name}` is not known to open_clip: {fix}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        choices = ", ".join(f"{architecture}:{known}" for known in tags) or "no weights for it"
        raise InputError(f"`{parameter}={name}` needs a known tag of its weights: open_clip has {choices}")
    return architecture, tag


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


@torch.inference_mode()
def zero_shot_logits(clip: Clip, classifier: Tensor, images: Tensor) -> Tensor:
    """Compute the logits of images: the scaled cosine similarities to the classes.

    Args:
        clip: CLIP model, whose image tower embeds the images.
        classifier: weights from `zero_shot_classifier`, (classes, dim).
        images: normalised images, (B, C, H, W).

    Returns:
        The logits, (B, classes).
    """
    features = F.normalize(clip.model.encode_image(images).float(), dim=-1)  # (B, dim)
    return clip.model.logit_scale.exp() * features @ classifier.to(features).T
