"""How the daemon logs: for a terminal, for the journal, or as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from enum import StrEnum


class Format(StrEnum):
    """The form of a log line."""

    TEXT = "text"
    JOURNAL = "journal"
    JSON = "json"


# sd-daemon(3): a line's priority, as the journal reads it from its beginning
_PRIORITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class _Journal(logging.Formatter):
    """One record is one entry: further lines would be entries of their own."""

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITY.get(record.levelno, 6)
        return f"<{priority}>" + super().format(record).replace("\n", f"\n<{priority}>")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up(form: Format | None, level: int) -> None:
    """Log to stderr.

    Args:
        form: None decides by whether stderr goes to the journal (systemd.exec(5), JOURNAL_STREAM).
        level: of lbdr's own messages; libraries log warnings only.
    """
    if form is None:
        form = Format.JOURNAL if "JOURNAL_STREAM" in os.environ else Format.TEXT
    formatters: dict[Format, logging.Formatter] = {
        Format.TEXT: logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"),
        Format.JOURNAL: _Journal("%(message)s"),
        Format.JSON: _Json(),
    }
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatters[form])
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("lbdr").setLevel(level)
