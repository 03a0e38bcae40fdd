"""Something wrong at a place of the document."""

from __future__ import annotations

from dataclasses import dataclass

from lbdr.config.yaml12 import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at a place of the document.

    Args:
        path: keys, and list positions from 0.
        message: what was found and what is allowed.
        hint: the remedy.
        key: whether the key is wrong, and not its value.
    """

    path: Path
    message: str
    hint: str = ""
    key: bool = False
