"""What lbdr changed on a real server, and what was there before: the basis of --undo.

One file for the machine, with a record for each network namespace, since sysctls and addresses
belong to one. A record of an earlier boot is forgotten (the kernel forgot the changes, too), but
not when they persist: then this boot began with lbdr's values, and the remembered ones are still
the originals.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lbdr.errors import PrivilegeError, StateError
from lbdr.model import Address
from lbdr.realserver.files import read_text, write_atomically

_VERSION = 1


@dataclass(frozen=True, slots=True)
class RememberedVip:
    """A VIP that solve-arp was asked for.

    Args:
        interface: where it is.
        added: whether lbdr added it; one that was there before stays after --undo.
    """

    interface: str
    added: bool


@dataclass(frozen=True, slots=True)
class RememberedSysctl:
    """A sysctl that lbdr set.

    Args:
        before: the value that it had.
        after: the value that lbdr gave it.
    """

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What lbdr changed in one network namespace."""

    vips: Mapping[Address, RememberedVip] = field(default_factory=dict)
    sysctls: Mapping[str, RememberedSysctl] = field(default_factory=dict)
    persisted: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remember."""
        return not self.vips and not self.sysctls


@dataclass(frozen=True, slots=True)
class _Record:
    boot: str
    namespace: int
    memory: Memory


class MemoryFile:
    """The file that remembers.

    Args:
        path: usually /var/lib/lbdr/solve-arp.json.
        boot: the kernel's name for this boot.
        namespace: the inode number of the network namespace.
        machine: whether that is the machine's own, in which units run at boot.
    """

    def __init__(self, path: Path, *, boot: str, namespace: int, machine: bool) -> None:
        self.path = path
        self._boot = boot
        self._namespace = namespace
        self._machine = machine

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs of solve-arp out: each reads, changes and writes the same file.

        Raises:
            PrivilegeError: the caller may not write there.
            StateError: the lock file cannot be made.
        """
        lock = self.path.with_suffix(".lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        except PermissionError as error:
            raise PrivilegeError(f"cannot write {lock}", hint="run as root") from error
        except OSError as error:
            raise StateError(f"cannot write {lock}: {error.strerror}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def load(self) -> Memory:
        """What lbdr changed in this network namespace.

        Raises:
            StateError: the file is damaged, or a later version wrote it.
        """
        records = self._records()
        for record in records:
            if record.boot == self._boot and record.namespace == self._namespace:
                return record.memory
        earlier = [record.memory for record in records if self._is_of_earlier_boot(record)]
        return earlier[-1] if earlier and self._machine else Memory()

    def save(self, memory: Memory) -> None:
        """Remember, in place of what was remembered of this network namespace.

        Raises:
            StateError: the file cannot be written, or is damaged.
        """
        records = self._records()
        kept = [
            record
            for record in records
            if (record.boot == self._boot and record.namespace != self._namespace)
            or (self._is_of_earlier_boot(record) and not self._machine)
        ]
        if not memory.empty:
            kept.append(_Record(self._boot, self._namespace, memory))
        if kept or records:
            write_atomically(self.path, _to_json(kept))

    def _is_of_earlier_boot(self, record: _Record) -> bool:
        return record.boot != self._boot and record.memory.persisted

    def _records(self) -> list[_Record]:
        text = read_text(self.path)
        if text is None:
            return []
        try:
            return _from_json(text)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(
                f"{self.path} is damaged ({type(error).__name__}: {error}); it holds the values "
                "that sysctls had before lbdr",
                hint="restore it from a backup; or read in it what you can, put that back by hand, "
                "and move it away: lbdr then begins anew, with today's values as the originals",
            ) from error


def _to_json(records: list[_Record]) -> str:
    return (
        json.dumps(
            {
                "version": _VERSION,
                "namespaces": [
                    {
                        "boot": record.boot,
                        "namespace": record.namespace,
                        "persisted": record.memory.persisted,
                        "vips": {
                            str(address): {"interface": vip.interface, "added": vip.added}
                            for address, vip in record.memory.vips.items()
                        },
                        "sysctls": {
                            name: {"before": value.before, "after": value.after}
                            for name, value in record.memory.sysctls.items()
                        },
                    }
                    for record in records
                ],
            },
            indent=2,
        )
        + "\n"
    )


def _from_json(text: str) -> list[_Record]:
    data: Any = json.loads(text)
    if data["version"] != _VERSION:
        raise ValueError(f"version {data['version']!r}, this lbdr knows {_VERSION}")
    return [
        _Record(
            boot=_text(record["boot"]),
            namespace=int(record["namespace"]),
            memory=Memory(
                vips={
                    ipaddress.ip_address(address): RememberedVip(
                        _text(vip["interface"]), vip["added"] is True
                    )
                    for address, vip in record["vips"].items()
                },
                sysctls={
                    name: RememberedSysctl(_text(value["before"]), _text(value["after"]))
                    for name, value in record["sysctls"].items()
                },
                persisted=record["persisted"] is True,
            ),
        )
        for record in data["namespaces"]
    ]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
