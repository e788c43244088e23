"""The classes of ImageNet are found under all the names that datasets give them, and CLIP is asked for words."""

import numpy as np
import pytest
from timm.data import ImageNetInfo

from diffvit_timm.errors import InputError
from diffvit_timm.zero_shot.imagenet_names import imagenet_indices, readable, spoken_names, wordnet_id

INFO = ImageNetInfo("imagenet-1k")
IDS = INFO.label_names()
DESCRIPTIONS = [INFO.index_to_description(index) for index in range(1000)]
ON_THE_HUB = ["crane2" if index == 517 else name for index, name in enumerate(DESCRIPTIONS)]  # no name twice
ORDER = np.random.default_rng(0).permutation(1000)  # folders are sorted by their names

FORMS = {
    "WordNet ids": IDS,
    "WordNet ids with words": [f"{key}-{name.split(',')[0]}" for key, name in zip(IDS, DESCRIPTIONS, strict=True)],
    "descriptions": ON_THE_HUB,
    "descriptions as folders": [name.replace(" ", "_") for name in ON_THE_HUB],
    "first lemmas": ["tank suit" if index == 639 else name.split(",")[0] for index, name in enumerate(ON_THE_HUB)],
    "indices": [str(index) for index in range(1000)],
}


@pytest.mark.parametrize("form", FORMS)
def test_all_thousand_classes_are_known_in_any_order(form):
    names = [FORMS[form][index] for index in ORDER]
    assert imagenet_indices(names) == [[index] for index in ORDER]


@pytest.mark.parametrize("form", ["WordNet ids", "WordNet ids with words", "descriptions", "indices"])
def test_clip_is_asked_for_a_thousand_different_words_without_synonyms(form):
    spoken, in_order = spoken_names([FORMS[form][index] for index in ORDER]), spoken_names(IDS)
    assert spoken == [in_order[index] for index in ORDER]
    assert len({name.lower() for name in spoken}) == 1000
    assert not any(wordnet_id(name) or "," in name or "_" in name for name in spoken)


def test_clip_is_asked_for_the_first_lemma_or_for_another_one_where_two_classes_share_it():
    spoken = spoken_names(IDS)
    assert spoken[:4] == ["tench", "goldfish", "great white shark", "tiger shark"]
    assert (spoken[134], spoken[517]) == ("crane bird", "construction crane")
    assert (spoken[638], spoken[639]) == ("maillot", "tank suit")
    assert (spoken[264], spoken[474]) == ("Cardigan Welsh corgi", "cardigan")


def test_names_of_clips_authors_are_found_by_their_place():
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    assert imagenet_indices(IMAGENET_CLASSNAMES) == [[index] for index in range(1000)]
    assert len(imagenet_indices(IMAGENET_CLASSNAMES[::-1])[0]) <= 1  # in another order their place says nothing
    assert imagenet_indices(IMAGENET_CLASSNAMES[::-1])[-1] == [0]


@pytest.mark.parametrize(
    ("names", "indices"),
    [
        (["maillot"], [[638]]),
        (["maillot", "maillot, tank suit"], [[638], [639]]),
        (["crane"], [[134, 517]]),
        (["crane", "n03126707"], [[134], [517]]),
        (["Cardigan", "cardigan"], [[264], [474]]),
        (["panda"], [[387, 388]]),
        (["panda", "lesser panda"], [[388], [387]]),
        (["English springer", "gas pump", "French_horn"], [[217], [571], [566]]),  # as Imagenette names them
        (["n02086240", "n02087394"], [[155], [159]]),  # as Imagewoof names them
        (["dog", "n00015388", "n99999999", "7"], [[], [], [], []]),
    ],
)
def test_a_part_of_imagenet_is_found_by_name(names, indices):
    assert imagenet_indices(names) == indices


def test_names_that_are_not_a_description_stay_as_they_are():
    names = ["Egyptian_Mau", "great  dane", "english_setter", "7", "kite (bird of prey)"]
    assert spoken_names(names) == ["Egyptian Mau", "great dane", "english setter", "7", "kite (bird of prey)"]


def test_classes_of_imagenet_22k_have_words_too_and_an_unknown_id_is_an_error():
    assert spoken_names(["n00015388", "n01440764", "cat"]) == ["animal", "tench", "cat"]
    with pytest.raises(InputError, match=r"^the class n99999999 is not a WordNet id of ImageNet-22k, .* rename it"):
        spoken_names(["n01440764", "n99999999"])


def test_only_eight_digits_after_n_are_a_wordnet_id():
    assert wordnet_id("n01440764") == wordnet_id("n01440764-tench") == wordnet_id("n01440764_tench") == "n01440764"
    assert not any(map(wordnet_id, ["n0144076", "n014407641", "n01440764tench", "an01440764", "tench n01440764", ""]))


def test_a_readable_name_has_spaces():
    assert readable("great_white__shark ") == "great white shark"
