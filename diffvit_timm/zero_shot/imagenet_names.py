"""Names of ImageNet's classes: which class a name means, and by which words CLIP is asked for it.

A dataset of ImageNet, or of a part of it, names the same class in one of these forms:

    n01440764, n01440764-tench            # its WordNet id, as in folders of ImageNet, Imagenette or Stanford Dogs
    tench, Tinca tinca                    # its description: all its names in WordNet (lemmas)
    tench, Great_white_shark              # one of its lemmas
    0, 1, ..., 999                        # its index, if the dataset has all 1,000
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from timm.data import ImageNetInfo

from ..errors import InputError

__all__ = ["imagenet_indices", "normalised", "readable", "spoken_names", "wordnet_id"]

CLASSES = 1000
# Both have "crane" as their only lemma. The first name is the one that CLIP is asked for; others call them so too.
CRANES = {134: ("crane bird",), 517: ("construction crane", "crane2")}


def readable(name: str) -> str:
    """Return a class name with single spaces instead of underscores."""
    return " ".join(name.replace("_", " ").split())


def normalised(name: str) -> str:
    """Return a name in lower case, with single spaces in place of punctuation and underscores."""
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def wordnet_id(name: str) -> str | None:
    """Return the WordNet id with which the name of a class begins, such as n01440764; None if there is none."""
    match = re.match(r"(n\d{8})(?![a-zA-Z0-9])", name)
    return match[1] if match else None


@functools.cache
def _info() -> ImageNetInfo:
    return ImageNetInfo("imagenet-1k")


def _lemmas(synset: str) -> list[str]:
    """Return the names of a WordNet id of ImageNet-22k.

    Raises:
        KeyError: another id.
    """
    return [lemma.strip() for lemma in _info().label_name_to_description(synset).split(",")]


@functools.cache
def _places() -> dict[str, int]:
    """Map the WordNet ids of ImageNet-1k to their indices."""
    return {synset: index for index, synset in enumerate(_info().label_names())}


@functools.cache
def _tables() -> list[tuple[Callable[[str], str], dict[str, list[int]]]]:
    """Return how a name is written, and such a name -> indices in ImageNet-1k, the most exact first."""
    descriptions = [_info().index_to_description(index) for index in range(CLASSES)]
    lemmas = [_lemmas(synset) for synset in _info().label_names()]
    firsts = [own[0] for own in lemmas]
    # "cardigan" is a garment and "Cardigan" is a dog, so the case decides before it is dropped.
    listed: list[tuple[Callable[[str], str], Iterable[tuple[int, str]]]] = [
        (readable, enumerate(descriptions)),
        (normalised, ((index, name) for index, names in CRANES.items() for name in names)),
        (readable, enumerate(firsts)),
        (normalised, enumerate(descriptions)),
        (normalised, enumerate(firsts)),
        (normalised, ((index, lemma) for index, own in enumerate(lemmas) for lemma in own)),
    ]
    tables = []
    for write, named in listed:
        table: dict[str, list[int]] = {}
        for index, name in named:
            table.setdefault(write(name), []).append(index)
        tables.append((write, table))
    return tables


def _candidates(name: str) -> list[int]:
    """Return the classes of ImageNet-1k that a name means most exactly."""
    if synset := wordnet_id(name):
        return [_places()[synset]] if synset in _places() else []
    return next((table[write(name)] for write, table in _tables() if write(name) in table), [])


def imagenet_indices(names: Sequence[str]) -> list[list[int]]:
    """Find the classes of ImageNet-1k that have these names, in any of the forms at the top of this file.

    A class that one name alone means is not given to another name that could mean it too: with "maillot, tank suit"
    in the dataset, "maillot" is only the other one.

    Args:
        names: class names of a dataset.

    Returns:
        The indices of each class. Empty for a class that ImageNet-1k does not have; several if the name has several
        meanings.
    """
    if _are_numbers(names):
        return [[int(name)] for name in names]
    found = [_candidates(name) for name in names]
    if _are_in_order(found):
        return [[index] for index in range(CLASSES)]
    sole = {own[0] for own in found if len(own) == 1}
    return [own if len(own) == 1 else [index for index in own if index not in sole] or own for own in found]


def _are_numbers(names: Sequence[str]) -> bool:
    return len(names) == CLASSES and set(names) == {str(index) for index in range(CLASSES)}


def _are_in_order(found: Sequence[Sequence[int]]) -> bool:
    """Return whether 1,000 classes are ImageNet's in its order, under names of which some are not WordNet's.

    Of the names that CLIP's authors use, 175 are not WordNet's. At least half of the names must be known, and nearly
    all of these must be in place.
    """
    in_place = [index in own for index, own in enumerate(found) if own]
    return len(found) == CLASSES and len(in_place) >= CLASSES / 2 and sum(in_place) >= 0.95 * len(in_place)


def spoken_names(names: Sequence[str]) -> list[str]:
    """Return the words by which CLIP is asked for each class.

    A WordNet id and a description become one lemma: the first that no other class of ImageNet has as its first. Other
    names stay as they are, with spaces instead of underscores.

    Args:
        names: class names of a dataset.

    Raises:
        InputError: a WordNet id that ImageNet-22k does not have.
    """
    synsets = [
        wordnet_id(name) or _described(name, own) for name, own in zip(names, imagenet_indices(names), strict=True)
    ]
    lemmas = {}
    for name, synset in zip(names, synsets, strict=True):
        try:
            if synset:
                lemmas[synset] = _lemmas(synset)
        except KeyError:
            raise InputError(
                f"the class {name} is not a WordNet id of ImageNet-22k, so there is no name by which CLIP can be asked "
                "for it: rename it to words"
            ) from None
    spoken = _distinct({**{synset: _lemmas(synset) for synset in _info().label_names()}, **lemmas})
    return [spoken[synset] if synset else readable(name) for name, synset in zip(names, synsets, strict=True)]


def _described(name: str, indices: Sequence[int]) -> str | None:
    """Return the WordNet id of the only class that a name means, if CLIP is not to be asked by the name itself.

    Such a name is an index, a description with synonyms, or one of the cranes.
    """
    if len(indices) != 1:
        return None
    (index,) = indices
    description = _info().index_to_description(index)
    has_synonyms = "," in description and normalised(name) == normalised(description)
    return _info().index_to_label_name(index) if has_synonyms or name == str(index) or index in CRANES else None


def _distinct(lemmas: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Choose a lemma per WordNet id that is not the first of another. CLIP reads all text in lower case."""
    firsts = Counter(own[0].lower() for own in lemmas.values())
    chosen = {}
    for synset, own in lemmas.items():
        free = (lemma for lemma in own[1:] if not firsts[lemma.lower()])
        chosen[synset] = own[0] if firsts[own[0].lower()] == 1 else next(free, own[0])
    return chosen | {_info().index_to_label_name(index): names[0] for index, names in CRANES.items()}
