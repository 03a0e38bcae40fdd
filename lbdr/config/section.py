"""What every mapping of the file is: strict, immutable, and able to say what and where it is."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from lbdr.config.values import wrong


def written(value: Any) -> Any:
    """Refuses null where leaving the key out is what is meant."""
    if value is None:
        raise wrong("settings, or the key left out")
    return value


class Section(BaseModel):
    """A mapping in the file.

    `noun` says what it is, and `where` tells where it stands.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    noun: ClassVar[str] = ""
    where: ClassVar[str] = ""
