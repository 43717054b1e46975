"""What a licence allows, by its own words."""

from __future__ import annotations

import re


def forbids_commercial_use(licence: str) -> bool:
    """Tell whether a licence, by its own words, keeps weights from commercial use."""
    return re.search(r"\bBY-NC\b|non-?commercial", licence, re.IGNORECASE) is not None
