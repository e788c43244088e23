"""The optimizers of timm by name: which of them train here, and why the others are refused."""

import difflib

from ..errors import InputError

__all__ = ["check_optimizer", "momentum_of"]

# Parts of the names of optimizers that are refused, and the reasons.
REFUSED = {
    "bnb": "needs the package bitsandbytes, and was not tried here",
    "fused": "needs NVIDIA's apex, and was not tried here",
    "lookahead": "keeps slow weights, which a checkpoint would lose",
    "adahessian": "needs second derivatives, which this trainer does not compute",
    "adafactorbv": "keeps a data type in its state, which a checkpoint cannot have",
    "kron": "draws random numbers that a checkpoint would lose",
    "madgrad": "counts its updates in a place that a checkpoint would lose",
}


def check_optimizer(name: str) -> None:
    """Check that an optimizer of timm exists and that it trains with our options, checkpoints included.

    Args:
        name: name of the optimizer, as in timm.optim.list_optimizers().

    Raises:
        InputError: the name is unknown, or the optimizer is refused.
    """
    from timm.optim import get_optimizer_info, list_optimizers  # not above: the default needs no check

    reason = next((reason for part, reason in REFUSED.items() if part in name.lower()), None)
    if reason is None and name in list_optimizers():
        reason = REFUSED["adahessian"] if get_optimizer_info(name).second_order else None
        if reason is None:
            return
    if reason:
        raise InputError(f"`opt={name}` {reason}: choose another optimizer, such as adamw")
    usable = [known for known in list_optimizers() if not any(part in known for part in REFUSED)]
    close = difflib.get_close_matches(name.lower(), usable, n=3)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    raise InputError(f"`opt={name}` is not an optimizer of timm: {meant}timm.optim.list_optimizers() lists all names")


def momentum_of(name: str) -> float:
    """Return the momentum of an optimizer that has one: 0.95 for Muon, as its author sets it, or else timm's 0.9."""
    return 0.95 if name.endswith("muon") else 0.9
