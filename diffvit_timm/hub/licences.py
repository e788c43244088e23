"""Licences of models, in the words that the Hub accepts, and of the recipes' datasets."""

import re

__all__ = ["DATA_LICENCES", "PICTURES_FORBIDDEN", "licence_fields"]

# Licences of the recipes' datasets, where their authors name one.
DATA_LICENCES = {
    "timm/oxford-iiit-pet": "CC BY-SA 4.0",
    "zalando-datasets/fashion_mnist": "MIT",
    "1aurent/BACH": "CC BY-NC-ND 4.0 (no commercial use)",
}
PICTURES_FORBIDDEN = ("1aurent/BACH",)  # datasets whose licence forbids sharing pictures made from their images

# https://huggingface.co/docs/hub/repositories-licenses, the list of 6 June 2026. The Hub refuses a card whose licence
# has another identifier.
IDENTIFIERS = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community
    h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 pddl
    postgresql unknown unlicense wtfpl zlib
"""
HUB_LICENCES = frozenset(IDENTIFIERS.split())


def licence_fields(licence: str | None) -> dict[str, str]:
    """Return the fields of a model card for a licence.

    Args:
        licence: as timm names it, such as 'apache-2.0' or 'dinov3-license'; None if it is not known.

    Returns:
        The `license`, which is `other` with a `license_name` if the Hub has no identifier for it.
    """
    name = re.sub(r"[^a-z0-9.+-]+", "-", str(licence or "unknown").lower()).strip("-") or "unknown"
    return {"license": name} if name in HUB_LICENCES else {"license": "other", "license_name": name}
