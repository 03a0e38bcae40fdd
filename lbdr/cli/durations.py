"""Durations on the command line."""

from __future__ import annotations

import click

from lbdr.config.durations import parse_duration


def duration(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """An option's callback: seconds of a duration as the configuration has it."""
    if value is None:
        return None
    seconds = parse_duration(value)
    if not seconds:
        raise click.BadParameter(f"{value} is no duration, such as 90s, 10m or 12h")
    return seconds
