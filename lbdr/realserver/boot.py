"""What the files of this machine will set at the next boot, whoever wrote them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lbdr.realserver.files import read_text
from lbdr.realserver.persist import Paths
from lbdr.realserver.texts import parse_sysctls

# sysctl.d(5): a file in an earlier folder hides those of the same name in later ones
_FOLDERS = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")


@dataclass(frozen=True, slots=True)
class BootSetting:
    """A sysctl as it will be set at boot.

    Args:
        name: as sysctl(8) writes it.
        value: as text.
        file: the one that has the last word.
    """

    name: str
    value: str
    file: Path


def boot_settings(paths: Paths, names: Iterable[str]) -> list[BootSetting]:
    """The last word of all sysctl.d files on some sysctls; those without one are left out.

    Raises:
        StateError: a file cannot be read.
    """
    files: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in (paths.root / folder).glob("*.conf"):
            files.setdefault(path.name, path)
    found: dict[str, BootSetting] = {}
    wanted = list(names)
    for name in sorted(files):
        settings = parse_sysctls(read_text(files[name]) or "")
        for pattern, value in settings.items():
            for sysctl in wanted:
                if fnmatch.fnmatchcase(sysctl, pattern):
                    found[sysctl] = BootSetting(sysctl, value, files[name])
    return [found[sysctl] for sysctl in wanted if sysctl in found]
