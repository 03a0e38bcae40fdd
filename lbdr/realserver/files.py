"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lbdr.errors import PrivilegeError, StateError


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file: readers see the old text or the new one, also after a power failure.

    Args:
        path: its folder is made where it is missing.
        text: the new content.
        mode: permission bits.

    Raises:
        PrivilegeError: the caller may not write there.
        StateError: anything else, a full disk for one; the old file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except PermissionError as error:
        raise PrivilegeError(f"cannot write {path}: {error.strerror}", hint="run as root") from (
            error
        )
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror}",
            hint="nothing was changed there; make room or repair the file system, and run it again",
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str | None:
    """A file's text; None where there is none.

    Raises:
        PrivilegeError: the caller may not read it.
        StateError: it is there and cannot be read for another reason.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise PrivilegeError(f"cannot read {path}: {error.strerror}", hint="run as root") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"cannot read {path}: {error}") from error
