"""What makes a solved ARP problem survive a reboot: a sysctl.d file and a systemd unit of ours.

Both begin with HEADER. A file of the same name without it is somebody else's, and is never
overwritten or removed.
"""

from __future__ import annotations

import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lbdr.errors import ConfigError, PrivilegeError, Problem, StateError
from lbdr.realserver.files import read_text, write_atomically
from lbdr.realserver.texts import HEADER, Unit, parse_sysctls, parse_unit, quote, sysctl_text

UNIT = "lbdr-solve-arp.service"
_SYSCTL_FILE = Path("etc/sysctl.d/90-lbdr-solve-arp.conf")
_UNIT_FILE = Path("etc/systemd/system") / UNIT
_WANTS = Path("etc/systemd/system/multi-user.target.wants") / UNIT
_MEMORY_FILE = Path("var/lib/lbdr/solve-arp.json")


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are.

    Args:
        root: `/`, or a folder that stands for it: a test's, or that of an image being made.
    """

    root: Path = Path("/")

    @property
    def sysctl_file(self) -> Path:
        """The sysctl.d file of ours."""
        return self.root / _SYSCTL_FILE

    @property
    def unit_file(self) -> Path:
        """The systemd unit of ours."""
        return self.root / _UNIT_FILE

    @property
    def wants(self) -> Path:
        """The link that enables the unit."""
        return self.root / _WANTS

    @property
    def memory(self) -> Path:
        """What --undo goes by."""
        return self.root / _MEMORY_FILE

    @property
    def systemd_runs(self) -> bool:
        """Whether systemd runs this machine, and the machine is meant (sd_booted(3))."""
        return self.root == Path("/") and Path("/run/systemd/system").is_dir()


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Write a file of ours."""

    path: Path
    text: str

    @property
    def command(self) -> str:
        """What it amounts to; the text follows where it is only shown."""
        return f"install -D -m 0644 /dev/stdin {shlex.quote(str(self.path))}"


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Remove a file or link of ours."""

    path: Path

    @property
    def command(self) -> str:
        """The rm line."""
        return f"rm {shlex.quote(str(self.path))}"


@dataclass(frozen=True, slots=True)
class EnableUnit:
    """Enable the unit by the link that `systemctl enable` would make."""

    link: Path

    @property
    def command(self) -> str:
        """The ln line."""
        return f"ln -s ../{UNIT} {shlex.quote(str(self.link))}"


@dataclass(frozen=True, slots=True)
class ReloadSystemd:
    """Have systemd read its units again."""

    command: str = "systemctl daemon-reload"


FileOperation = WriteFile | RemoveFile | EnableUnit | ReloadSystemd


def read_unit(paths: Paths) -> Unit | None:
    """The unit of ours; None where there is none.

    Raises:
        ConfigError: the file is somebody else's, or was edited beyond recognition.
    """
    text = read_text(paths.unit_file)
    if text is None:
        return None
    try:
        return parse_unit(text)
    except ValueError as error:
        raise _foreign(paths.unit_file, str(error)) from error


def read_sysctl_file(paths: Paths) -> dict[str, str] | None:
    """The settings of the sysctl.d file of ours; None where there is none.

    Raises:
        ConfigError: the file is somebody else's.
    """
    text = read_text(paths.sysctl_file)
    if text is not None and not text.startswith(HEADER):
        raise _foreign(paths.sysctl_file, "it does not begin with lbdr's header")
    return None if text is None else parse_sysctls(text)


def _foreign(path: Path, why: str) -> ConfigError:
    return ConfigError(
        [
            Problem(
                f"not a file of lbdr's, and therefore left as it is: {why}",
                file=str(path),
                hint="move it away, and run this again",
            )
        ]
    )


def plan_files(paths: Paths, unit: Unit | None, settings: Mapping[str, str]) -> list[FileOperation]:
    """What makes the files say what they are to say; nothing where they do.

    Args:
        paths: where they are.
        unit: None, or one without VIPs, for no unit at all.
        settings: sysctls; none at all for no file.

    Raises:
        ConfigError: a file is somebody else's.
    """
    operations: list[FileOperation] = []
    had_settings, had_unit = read_sysctl_file(paths), read_unit(paths)
    if settings:
        text = sysctl_text(settings)
        if read_text(paths.sysctl_file) != text:
            operations.append(WriteFile(paths.sysctl_file, text))
    elif had_settings is not None:
        operations.append(RemoveFile(paths.sysctl_file))
    reload = False
    if unit is not None and unit.vips:
        if read_text(paths.unit_file) != unit.text:
            operations.append(WriteFile(paths.unit_file, unit.text))
            reload = True
        if not paths.wants.is_symlink():
            operations.append(EnableUnit(paths.wants))
            reload = True
    elif had_unit is not None:
        operations += [RemoveFile(paths.wants)] if paths.wants.is_symlink() else []
        operations.append(RemoveFile(paths.unit_file))
        reload = True
    if reload and paths.systemd_runs:
        operations.append(ReloadSystemd())
    return operations


def apply_file(operation: FileOperation) -> None:
    """Do it.

    Raises:
        PrivilegeError: the caller may not.
        StateError: the file system refuses, or systemd does.
    """
    if isinstance(operation, WriteFile):
        write_atomically(operation.path, operation.text)
        return
    try:
        if isinstance(operation, RemoveFile):
            operation.path.unlink(missing_ok=True)
        elif isinstance(operation, EnableUnit):
            operation.link.parent.mkdir(parents=True, exist_ok=True)
            operation.link.symlink_to(Path("..") / UNIT)
        else:
            subprocess.run(
                operation.command.split(), check=True, capture_output=True, text=True, timeout=60
            )
    except PermissionError as error:
        raise PrivilegeError(f"{operation.command}: {error.strerror}", hint="run as root") from (
            error
        )
    except OSError as error:
        raise StateError(f"{operation.command}: {error.strerror}") from error
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", "") or str(error)
        raise StateError(f"{operation.command}: {said.strip()}") from error


def this_command() -> tuple[str, str]:
    """The words by which a unit starts this lbdr, and the Environment line that they need.

    Raises:
        ConfigError: a unit could not: it is in a folder that only another user may enter.
    """
    beside = [Path(sys.argv[0]), Path(sys.executable).with_name("lbdr")]
    for candidate in beside:
        if candidate.name == "lbdr" and candidate.is_file() and _executable(candidate):
            path = candidate.absolute()
            _refuse_unreachable(path)
            return quote(str(path)), ""
    found = shutil.which("lbdr")
    package = Path(__file__).resolve().parents[2]
    if found is not None and str(package) in sysconfig.get_paths().values():
        _refuse_unreachable(Path(found).absolute())
        return quote(str(Path(found).absolute())), ""
    _refuse_unreachable(package / "lbdr" / "__main__.py")
    return (
        f"{quote(sys.executable)} -m lbdr",
        f"Environment={quote(f'PYTHONPATH={package}')}",
    )


def _executable(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o111)


def _refuse_unreachable(path: Path) -> None:
    """The unit runs as root without CAP_DAC_OVERRIDE: permission bits hold for it."""
    for part in (path, *path.parents):
        status = part.stat()
        needed = stat.S_IXOTH if part.is_dir() else stat.S_IROTH
        if status.st_uid != 0 and status.st_mode & needed != needed:
            raise ConfigError(
                [
                    Problem(
                        f"{path}: a unit could not start it at boot, since {part} belongs to "
                        "another user and is closed to all others",
                        hint="install lbdr where root can read it, for example in /opt/lbdr",
                    )
                ]
            )
