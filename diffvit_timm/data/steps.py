"""The steps of augmentation policies, by name."""

from ..errors import InputError

__all__ = ["STEPS", "parse_policy"]

STEPS = {
    "crop": "random resized crop, which keeps at least `crop_scale` of the image's area",
    "shift": "pad by an eighth of the side and crop at random, for small images",
    "flip": "flip left to right, with probability 1/2",
    "color": "change brightness, contrast and saturation",
    "randaugment": "RandAugment, 2 operations of magnitude 9",
    "autoaugment": "AutoAugment: the policy for CIFAR-10 up to 64 pixels, the policy for ImageNet above",
    "trivialaugment": "TrivialAugment Wide",
    "erase": "fill a random rectangle with noise, with probability 1/4",
    "cutout": "fill a square of half the side with the mean colour",
}


def parse_policy(policy: str) -> tuple[str, ...]:
    """Return the steps of an augmentation policy such as 'crop+flip+randaugment', in the order of `STEPS`.

    Raises:
        InputError: a step is unknown or named twice, or both crop and shift are named.
    """
    given = () if policy == "none" else tuple(policy.split("+"))
    for step in given:
        if step not in STEPS:
            raise InputError(f"`augment={policy}`: {step!r} is not known: choose none, or some of {', '.join(STEPS)}")
    if len(set(given)) < len(given):
        raise InputError(f"`augment={policy}` names a step twice: name it once")
    if {"crop", "shift"} <= set(given):
        raise InputError(f"`augment={policy}`: crop and shift both choose a part of the image: leave one of them out")
    return tuple(step for step in STEPS if step in given)
