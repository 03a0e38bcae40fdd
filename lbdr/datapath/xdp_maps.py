"""The maps of the director's programs: made, opened again, and seen as what they mean."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf import LayoutError
from lbdr.datapath.bpf_arrays import Array
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.bpf_wire import MapKind
from lbdr.datapath.xdp_flows import FlowTable
from lbdr.datapath.xdp_layout import Capacity, MapSpec, map_specs
from lbdr.datapath.xdp_ports import PortLines
from lbdr.model import Address

_ARRAYS = (MapKind.ARRAY, MapKind.PERCPU_ARRAY)


class DirectorMaps:
    """All maps of one director, open, with the shared memory of those that have it.

    Args:
        maps: by name.
        capacity: what they were made for.
        version: of the programs that use them; 0 for none yet.
    """

    def __init__(self, maps: dict[str, Map], capacity: Capacity, version: int = 0) -> None:
        self.capacity = capacity
        self.version = version
        self._maps = maps
        self._open = ExitStack()
        for one in maps.values():
            self._open.enter_context(one)
        self.services = self._words("services")
        self.slots = self._words("slots", "I")
        self.servers = self._words("servers")
        self._vips = self._words("vips")
        self._ports = {
            version: PortLines(
                self._words(f"ports{version}"),
                version,
                {key: layout.U32.unpack(value)[0] for key, value in maps[name].items()},
            )
            for version, name in ((4, "services4"), (6, "services6"))
        }
        self._ranges = {key for name in ("ranges4", "ranges6") for key in maps[name].keys()}  # noqa: SIM118
        self._deep: set[Address] | None = None  # what the bits say is not known yet
        self._write_deep()

    def __getitem__(self, name: str) -> Map:
        return self._maps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    def create(cls, capacity: Capacity) -> Self:
        """Make all maps anew, empty; not pinned yet.

        Raises:
            PrivilegeError, KernelError: the kernel refuses.
        """
        maps: dict[str, Map] = {}
        with ExitStack() as undo:
            for name, spec in map_specs(capacity).items():
                kind = _class(name, spec)
                maps[name] = undo.enter_context(
                    kind.create(
                        spec.kind,
                        spec.key_size,
                        spec.value_size,
                        spec.max_entries,
                        name=f"lbdr_{name}",
                        flags=spec.flags,
                    )
                )
            maps["about"].update(layout.U32.pack(0), capacity.pack())
            made = cls(maps, capacity)
            undo.pop_all()
        return made

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open the maps that are pinned in a directory.

        Raises:
            LayoutError: they are another version's; they are not used.
            PrivilegeError, KernelError: they cannot be opened; ENOENT where there are none.
        """
        about = map_specs(Capacity())["about"]
        with Array.open(
            directory / "about", about.key_size, about.value_size, 1, about.kind
        ) as pinned:
            try:
                capacity, version = Capacity.unpack(pinned.lookup(layout.U32.pack(0)) or b"")
            except ValueError as error:
                raise LayoutError(
                    f"the maps pinned in {directory} have another layout: {error}"
                ) from error
        maps: dict[str, Map] = {}
        with ExitStack() as undo:
            for name, spec in map_specs(capacity).items():
                kind = _class(name, spec)
                maps[name] = undo.enter_context(
                    kind.open(
                        directory / name,
                        spec.key_size,
                        spec.value_size,
                        spec.max_entries,
                        spec.kind,
                    )
                )
            opened = cls(maps, capacity, version)
            undo.pop_all()
        return opened

    def pin(self, directory: Path) -> None:
        """Pin all of them in a directory, which exists; `about` last, so that it tells of all.

        Raises:
            PrivilegeError, KernelError: the kernel refuses.
        """
        for name in sorted(self._maps, key=lambda name: name == "about"):
            self._maps[name].pin(directory / name, replace=True)

    def set_version(self, version: int) -> None:
        """Write down which programs use the maps."""
        self["about"].update(layout.U32.pack(0), self.capacity.pack(version))
        self.version = version

    # --- services by their keys ------------------------------------------------------------------

    def write_vips(self, addresses: Collection[Address]) -> None:
        """Write which addresses have services.

        Args:
            addresses: of all services.
        """
        self._write_bits(0, addresses)

    def write_port(self, key: bytes, service: int) -> None:
        """Let a port be a service's.

        Args:
            key: layout.key_of().
            service: its index.

        Raises:
            KernelError: there is no room.
        """
        self[f"services{_version(key)}"].update(key, layout.U32.pack(service))
        self._ports[_version(key)].put(key, service)
        self._write_deep()

    def delete_port(self, key: bytes) -> None:
        """Let a port be no service's.

        Args:
            key: layout.key_of().
        """
        self._ports[_version(key)].drop(key)
        self[f"services{_version(key)}"].delete(key)
        self._write_deep()

    def write_ranges(self, key: bytes, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Let ranges of ports of an address be services'; exact ports go before them.

        Args:
            key: layout.key_of() with port 0.
            ranges: first, last and the service's index, at most layout.RANGES of them.

        Raises:
            KernelError: there is no room.
        """
        value = b"".join(layout.PORT_RANGE.pack(*one) for one in ranges)
        self._ranges.add(key)
        self._write_deep()  # first: who answers for a closed port is not to be steady.c
        size = layout.PORT_RANGE.size * layout.RANGES
        self[f"ranges{_version(key)}"].update(key, value.ljust(size, b"\0"))

    def delete_ranges(self, key: bytes) -> None:
        """Let no range of an address's ports be a service's.

        Args:
            key: layout.key_of() with port 0.
        """
        self[f"ranges{_version(key)}"].delete(key)
        self._ranges.discard(key)
        self._write_deep()

    def _write_deep(self) -> None:
        """Which addresses have ports that no line tells of."""
        keys = self._ranges.union(*(lines.left for lines in self._ports.values()))
        deep = {layout.address_of(key) for key in keys}
        if deep != self._deep:
            self._write_bits(1, deep)
            self._deep = deep

    def _write_bits(self, offset: int, addresses: Collection[Address]) -> None:
        for place, word in enumerate(layout.vip_words(addresses)):
            if self._vips[2 * place + offset] != word:
                self._vips[2 * place + offset] = word

    def read_service(self, index: int) -> bytes:
        """A service, as FastService.pack() made it.

        Args:
            index: its place.
        """
        size = layout.SERVICE.size // 8
        return self.services[index * size : (index + 1) * size].tobytes()

    def mark_of(self, index: int) -> int:
        """The packet mark of a service; 0 for none.

        Args:
            index: its place.
        """
        mark: int = layout.SERVICE.unpack(self.read_service(index))[-2]
        return mark

    def timeout_of(self, index: int) -> int:
        """Ticks after which IPVS has forgotten a flow of a service that it does not see.

        Args:
            index: its place.
        """
        timeout: int = layout.SERVICE.unpack(self.read_service(index))[-1]
        return timeout

    # --- writing what programs read ------------------------------------------------------------

    def write_service(self, index: int, value: bytes) -> None:
        """Write a service; packets meet the old one, none, or the new one, never a mixture.

        Args:
            index: its place.
            value: FastService.pack().
        """
        self._write(self.services, index * (len(value) // 8), value)

    def write_server(self, index: int, value: bytes) -> None:
        """Write a server; packets meet the old one, none, or the new one, never a mixture.

        Args:
            index: its place.
            value: FastServer.pack().
        """
        self._write(self.servers, index * (len(value) // 8), value)

    def write_table(self, line: int, slots: array[int]) -> None:
        """Write a table that no service has yet.

        Args:
            line: its first one.
            slots: as many as the kernel's table has.
        """
        first = line * layout.SLOTS_IN_LINE
        self.slots[first : first + len(slots)] = memoryview(slots)

    def _write(self, memory: memoryview, first: int, value: bytes) -> None:
        """The first word says whether the others count: it is 0 while they change."""
        words = memoryview(value).cast("Q")
        if memory[first + 1 : first + len(words)] != words[1:]:
            memory[first] = 0
            memory[first + 1 : first + len(words)] = words[1:]
        memory[first] = words[0]

    def close(self) -> None:
        """Close them; pins and programs hold them."""
        self._open.close()

    def array(self, name: str) -> Array:
        """A map that is an array.

        Raises:
            TypeError: it is another kind.
        """
        found = self._maps[name]
        if not isinstance(found, Array):
            raise TypeError(name)
        return found

    def _words(self, name: str, size: str = "Q") -> memoryview:
        """The values of an array as words that are written by one store each."""
        memory = self._open.enter_context(self.array(name).memory())
        view: memoryview = memoryview(memory).cast("B").cast(size)  # type: ignore[call-overload]  # "I", "Q"
        self._open.callback(view.release)
        return view


def _version(key: bytes) -> int:
    return 4 if len(key) == layout.KEY4.size else 6


def _class(name: str, spec: MapSpec) -> type[Map]:
    if name == "flows4":
        return FlowTable
    return Array if spec.kind in _ARRAYS else Map
