"""CLIP as a classifier of classes that it has never been trained on: their names, put into sentences.

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

__all__ = [
    "TEMPLATES",
    "Clip",
    "load_clip",
    "logits",
    "open_clip_or_stop",
    "read_templates",
    "readable",
    "zero_shot_classifier",
]

# CLIP's own prompts, by what the dataset's name has in it (https://github.com/openai/CLIP, data/prompts.md).
_LOOKS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
TEMPLATES = {
    "pet": ("a photo of a {}, a type of pet.",),
    "cifar": tuple(
        f"a {look}photo of {article} {size}{{}}."
        for article in ("a", "the")
        for look, size in (*((look, "") for look in _LOOKS), ("", "small "), ("", "big "))
    ),
    "fashion": ("a photo of a {}, a type of clothing.",),
    "mnist": ('a photo of the number: "{}".',),
    "imagenet": (
        "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
        "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
    ),
    "plain": ("a photo of a {}.",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Clip:
    """A CLIP model of open_clip.

    Attributes:
        model: with encode_image and encode_text, in evaluation mode.
        transform: image -> normalised tensor (C, H, W).
        tokenize: sentences -> tokens (n, context length).
        name: of open_clip, or of its folder.
    """

    model: Any
    transform: Callable
    tokenize: Callable[[Sequence[str]], Tensor]
    name: str


def open_clip_or_stop() -> Any:
    """The package, or one line that says how to get it."""
    try:
        import open_clip
    except ImportError as error:
        raise InputError("CLIP needs open_clip: pip install 'diffvit_timm[clip]'") from error
    return open_clip


def load_clip(name: str, option: str = "--clip") -> Clip:
    """A CLIP model by its name.

    Args:
        name: ARCHITECTURE:TAG of open_clip, hf-hub:NAME, or a folder with an open_clip_config.json.
        option: what the user calls it.

    Raises:
        InputError: no open_clip, a name or tag that it does not know, weights that cannot be had, no text tower.
    """
    open_clip = open_clip_or_stop()
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    if folder.is_dir() or name.startswith("local-dir:"):
        if not (folder / "open_clip_config.json").is_file():
            raise InputError(f"{option} {name} holds no open_clip_config.json: it is no folder of a CLIP model")
        architecture, tag = f"local-dir:{folder}", None
    elif name.startswith("hf-hub:"):
        architecture, tag = name, None
    else:
        architecture, tag = _known(name, option, open_clip)
    # the sigmoid approximation of GELU, which open_clip leaves to whoever names the architecture
    quick = tag is not None and open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
    try:
        with _silent():
            model, _, transform = open_clip.create_model_and_transforms(architecture, tag, force_quick_gelu=quick)
            tokenize = open_clip.get_tokenizer(architecture)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{option} {name} cannot be loaded ({type(error).__name__}): {error}") from error
    if not hasattr(model, "encode_text") or not hasattr(model, "encode_image"):
        raise InputError(f"{option} {name} has no text tower to read class names with: give a CLIP model")
    return Clip(model.eval(), transform, tokenize, folder.name if folder.is_dir() else name)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the log lines of open_clip, which say a second time what its errors say."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _known(name: str, option: str, open_clip: Any) -> tuple[str, str]:
    """Architecture and tag that open_clip knows."""
    architecture, _, tag = name.partition(":")
    if architecture not in open_clip.list_models():
        close = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        raise InputError(
            f"{option} {name}: open_clip knows no CLIP of that name: did you mean {' or '.join(close) or 'another'}?"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise InputError(f"{option} {name} needs a tag of its weights: {architecture}:{'|'.join(tags) or 'none known'}")
    return architecture, tag


def read_templates(given: str, dataset: str) -> tuple[str, ...]:
    """Sentences with a {} for the name of a class.

    Args:
        given: 'auto' chooses by the dataset's name, a key of TEMPLATES, or a text file of one template a line.
        dataset: its name or folder.

    Raises:
        InputError: neither a key nor a file, or a line without its {}.
    """
    if given == "auto":
        name = Path(dataset).name.lower()
        return next((templates for key, templates in TEMPLATES.items() if key in name), TEMPLATES["plain"])
    if given in TEMPLATES:
        return TEMPLATES[given]
    try:
        lines = [line.strip() for line in Path(given).expanduser().read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(["auto", *TEMPLATES])
        raise InputError(f"--templates {given} is neither one of {known} nor a text file: {error}") from error
    templates = tuple(line for line in lines if line)
    for number, line in enumerate(lines, start=1):
        if line and line.count("{}") != 1:
            raise InputError(f"--templates {given}, line {number}: {line!r} needs one {{}}, where the class goes")
    if not templates:
        raise InputError(f"--templates {given} has no templates: one sentence a line, with {{}} for the class")
    return templates


def readable(name: str) -> str:
    """A class name as one would write it in a sentence."""
    return " ".join(name.replace("_", " ").split())


@torch.inference_mode()
def zero_shot_classifier(
    clip: Clip, names: Sequence[str], templates: Sequence[str], cache: Path | None = None
) -> Tensor:
    """The weights of a linear classifier: of each class the mean of its sentences' directions.

    Kept on the disk under a fingerprint of the text tower's weights, the names and the templates.

    Args:
        clip: whose text tower reads.
        names: of the classes, in the order of the labels.
        templates: sentences with a {}.
        cache: folder; None: in that of huggingface_hub.

    Returns:
        (classes, dim), rows of length 1: each sentence normalised, their mean, normalised again.
    """
    cache = cache or cached_assets_path("diffvit_timm", namespace="zero_shot")
    path = cache / f"{_fingerprint(clip.model, names, templates)}.safetensors"
    if path.exists():
        return load_file(path)["classifier"]
    device = next(clip.model.parameters()).device
    rows = []
    for name in names:
        tokens = clip.tokenize([template.replace("{}", readable(name)) for template in templates]).to(device)
        sentences = F.normalize(clip.model.encode_text(tokens).float(), dim=-1)
        rows.append(F.normalize(sentences.mean(dim=0), dim=-1))
    classifier = torch.stack(rows).cpu()
    aside = path.with_suffix(".part")
    save_file({"classifier": classifier}, aside)
    aside.replace(path)
    return classifier


def _fingerprint(model: nn.Module, names: Sequence[str], templates: Sequence[str]) -> str:
    # the kinds of modules are its activations: a tower of the same weights and another GELU says something else
    kinds = [type(module).__name__ for name, module in model.named_modules() if not name.startswith("visual")]
    digest = hashlib.sha256(repr((list(names), list(templates), kinds)).encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith("visual."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def logits(clip: Clip, classifier: Tensor, images: Tensor) -> Tensor:
    """Scaled cosine similarities of images (B, C, H, W) to the classes (classes, dim): (B, classes)."""
    features = F.normalize(clip.model.encode_image(images).float(), dim=-1)
    return clip.model.logit_scale.exp() * features @ classifier.to(features).T
