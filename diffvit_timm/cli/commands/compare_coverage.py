"""List which pretrained transformers of the installed timm convert, and how exactly, on random weights.

    diffvit compare coverage                          # all families, about 15 minutes
    diffvit compare coverage --families eva beit      # two of timm's modules
    diffvit compare coverage --names "*dinov3*"       # by name

Nothing is downloaded. Each network has two blocks per stage and random weights, with attention far from uniform.
"""

import dataclasses

from ...console import log0
from ...errors import InputError
from ...options import CheckedOptions
from ...studies.coverage import FAMILIES, Coverage, family_rows, measure_coverage

COLUMNS = """
tags: pretrained tags that convert, of all tags of the family; rotation, pairs, channels: tags by what version 1 may
choose from (directions of a head, frequency pairs, single channels); difference: largest relative difference between
the outputs of version 2 and of the plain network, in float32.
"""


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    names: str = "*"
    """Pattern of the names, as in timm.list_models."""
    families: tuple[str, ...] = ()
    """Modules of timm, such as eva; default: all with transformers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [family for members in FAMILIES.values() for family in members]
        for family in self.families:
            if family not in known:
                raise InputError(f"`families={family}` is not a module of transformers: choose from {', '.join(known)}")


def main(options: Options) -> dict:
    rows = []
    for row in measure_coverage(options.names, options.families):
        log0(_line(row))
        rows.append(row)
    if not rows:
        raise InputError(f"`names={options.names}` matches no transformer with pretrained tags: check the pattern")
    table = family_rows(rows)
    log0(COLUMNS)
    log0(f"{'family':28s}  {'tags':>9s}  {'rotation':>8s}  {'pairs':>5s}  {'channels':>8s}  difference")
    for family in table:
        difference = "-" if family["difference"] is None else f"{family['difference']:.1e}"
        tags = f"{family['convertible']}/{family['tags']}"
        counts = "  ".join(f"{family[kind]:>{len(kind)}d}" for kind in ("rotation", "pairs", "channels"))
        log0(f"{family['family']:28s}  {tags:>9s}  {counts}  {difference}")
    return {"families": table, "refused": {row.name: row.reason for row in rows if row.reason}}


def _line(row: Coverage) -> str:
    if row.reason:
        return f"{row.name}: {row.reason}"
    return f"{row.name}: version 2 differs by {row.difference:.1e}; version 1: {row.freedom}"
