"""Durations as users write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from lbdr.config.values import JsonSchema, Value, wrong

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")


@dataclass(frozen=True, slots=True)
class Duration(Value):
    """A time span, in seconds once read: `100ms`, `6s`, `5m`, `12h`, `1d`, or a number of seconds.

    Args:
        minimum: in the user's notation.
        maximum: in the user's notation.
        whole: whether only whole seconds are allowed, as where the kernel counts in seconds.
        zero: what 0 means; empty where 0 is not allowed beside the minimum.
    """

    minimum: str
    maximum: str
    whole: bool = False
    zero: str = ""

    def read(self, value: Any) -> float:
        seconds = parse_duration(value)
        if seconds is None:
            raise wrong(self._expected(), _duration_hint(value))
        low, high = parse_duration(self.minimum) or 0.0, parse_duration(self.maximum) or 0.0
        if not (low <= seconds <= high or (seconds == 0 and self.zero)):
            raise wrong(self._expected())
        if self.whole and seconds != int(seconds):
            raise wrong(f"{self._expected()} in whole seconds", "the kernel counts in seconds here")
        return int(seconds) if self.whole else seconds

    def _expected(self) -> str:
        zero = f", or 0 {self.zero}" if self.zero else ""
        return f"a duration from {self.minimum} to {self.maximum}{zero}"

    def json_schema(self) -> JsonSchema:
        return {
            "anyOf": [
                {"type": "string", "pattern": f"^{_DURATION.pattern}$"},
                {"type": "integer" if self.whole else "number", "minimum": 0},
            ],
        }

    def text(self) -> str:
        return self._expected()


def parse_duration(value: Any) -> float | None:
    """Seconds of a duration as users write it; None for what is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) and abs(value) < 1e12 else None
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    return round(float(match[1]) * _UNITS[match[2]], 9) if match else None


def _duration_hint(value: Any) -> str:
    if isinstance(value, str):
        squeezed = value.lower().replace(" ", "").replace("_", "")
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-zé]*)", squeezed)
        if match:
            unit = _LONG_UNITS.get(match[2], match[2])
            if unit in _UNITS:
                return f"write {match[1]}{unit}"
        parts = value.split(":")
        if len(parts) in (2, 3) and all(part.isdigit() and len(part) < 6 for part in parts):
            return "write one number with one unit, such as 90s or 5m"
    return "such as 100ms, 6s, 5m, 12h, 1d, or a number of seconds"


_LONG_UNITS = {
    "": "s",
    **dict.fromkeys(("msec", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
}
