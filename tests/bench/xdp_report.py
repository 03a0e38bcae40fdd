"""What a benchmark of the fast path says: figures, each beside what it is to keep."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A measured figure.

    Args:
        value: the median, in `unit`.
        ratio: to the reference that ran beside it; None where there is none.
        limit: what the ratio, or without one the value, is to keep; None for a row that informs.
        at_least: the limit is a lower one.
    """

    row: str
    value: float
    unit: str
    ratio: float | None = None
    limit: float | None = None
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the limit is kept."""
        if self.limit is None:
            return True
        measured = self.value if self.ratio is None else self.ratio
        return measured >= self.limit if self.at_least else measured <= self.limit

    def __str__(self) -> str:
        words = [f"{self.row:46} {self.value:9.2f} {self.unit:8}"]
        words.append("" if self.ratio is None else f"ratio {self.ratio:5.2f}")
        if self.limit is not None:
            words.append(f"{'at least' if self.at_least else 'at most'} {self.limit}")
        if not self.kept:
            words.append("NOT KEPT")
        return "  ".join(words).rstrip()

    def json(self) -> str:
        """As one object on a line."""
        return json.dumps(asdict(self))
