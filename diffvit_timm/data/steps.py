"""The steps that an augmentation policy is made of, by name."""

from ..errors import InputError

__all__ = ["STEPS", "parse_policy"]

STEPS = {
    "crop": "random resized crop, at least --crop-scale of the image",
    "shift": "pad by an eighth and crop at random, for small images",
    "flip": "left to right, every second image",
    "color": "brightness, contrast and saturation",
    "randaugment": "RandAugment, 2 operations of magnitude 9",
    "autoaugment": "AutoAugment, the policy of CIFAR-10 up to 64 pixels and else ImageNet's",
    "trivialaugment": "TrivialAugment Wide",
    "erase": "a noisy rectangle, every fourth image",
    "cutout": "a grey square of half the side",
}


def parse_policy(policy: str) -> tuple[str, ...]:
    """The steps of an augmentation policy such as 'crop+flip+randaugment', in the order in which they act.

    Raises:
        InputError: an unknown step, one twice, or both of crop and shift.
    """
    names = () if policy == "none" else tuple(policy.split("+"))
    for name in names:
        if name not in STEPS:
            raise InputError(f"--augment {policy}: {name!r} is not known: choose none, or of {', '.join(STEPS)}")
    if len(set(names)) < len(names):
        raise InputError(f"--augment {policy} names a step twice: leave one out")
    if {"crop", "shift"} <= set(names):
        raise InputError(f"--augment {policy}: crop and shift both choose a part of the image: leave one out")
    return tuple(name for name in STEPS if name in names)
