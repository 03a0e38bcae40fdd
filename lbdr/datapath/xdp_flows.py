"""The lines of learned flows (bpf/flows4.h), as the map that they are for lbdr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_arrays import Array
from lbdr.datapath.bpf_wire import Update
from lbdr.datapath.xdp_layout import LearnedState

_KNOWN, _CLOSING, _SERVER = 0x8000, 0x4000, 0x3FFF
_SHORT = 16  # of a flow's bits, the upper ones: the others lie in its word
_U64 = 0xFFFFFFFFFFFFFFFF
_BACK = pow(layout.MIX, -1, 1 << 64)
_SIZE = layout.FLOW_LINE.size
_TICKS = layout.FLOWS_IN_LINE * 8  # where in a line they begin
_PAGE = 4096


def mixed(key: bytes) -> int:
    """A flow's 64 bits, of which the upper ones say its line.

    Args:
        key: layout.FLOW4.
    """
    return int.from_bytes(key, sys.byteorder) * layout.MIX & _U64


class FlowTable(Array):
    """Flows by layout.FLOW4, and what is known of each by layout.LEARNED.

    Programs change it meanwhile. Each word is one store, so that it never names a server that its
    flow was not learned to have.
    """

    def lookup(self, key: bytes) -> bytes | None:
        """What is known of a flow; None for nothing.

        Args:
            key: layout.FLOW4.
        """
        start = self._start(key)
        words = self._words[start // 8 : start // 8 + layout.FLOWS_IN_LINE]
        first = (start + _TICKS) // 4
        line = *words, *self._ticks[first : first + layout.FLOWS_IN_LINE]
        return next(
            (value for there, value in self._flows(start // _SIZE, line) if there == key), None
        )

    def update(self, key: bytes, value: bytes, how: Update = Update.ANY) -> None:
        """Write what is known of a flow; where its line is full, the oldest flow makes room.

        Args:
            key: layout.FLOW4.
            value: layout.LEARNED.
            how: only ANY.
        """
        if how is not Update.ANY:
            raise ValueError(f"{self!r}: {how!r}")
        server, state, refreshed = layout.LEARNED.unpack(value)
        start, word = self._start(key), self._word(key)
        words, ticks = self._words, self._ticks
        first, first_tick = start // 8, (start + _TICKS) // 4

        def room(place: int) -> tuple[bool, bool, int]:
            there = words[first + place]
            age = (refreshed - ticks[first_tick + place] + (1 << 31)) & 0xFFFFFFFF
            return there ^ word < _KNOWN, not there, age

        place = max(range(layout.FLOWS_IN_LINE), key=room)
        ticks[first_tick + place] = refreshed
        words[first + place] = word | server | _CLOSING * (state == LearnedState.CLOSING)

    def delete(self, key: bytes) -> bool:
        """Forget a flow; whether it was there.

        Args:
            key: layout.FLOW4.
        """
        first, word = self._start(key) // 8, self._word(key)
        found = False
        for place in range(first, first + layout.FLOWS_IN_LINE):
            if self._words[place] ^ word < _KNOWN:
                self._words[place] = 0
                found = True
        return found

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All flows, each with what is known of it; one that comes meanwhile may be missed."""
        empty = bytes(_PAGE)
        with self.memory() as memory:
            for page in range(0, len(memory), _PAGE):
                there = memory[page : page + _PAGE]
                if there != empty:
                    for start in range(0, _PAGE, _SIZE):
                        line = layout.FLOW_LINE.unpack_from(there, start)
                        yield from self._flows((page + start) // _SIZE, line)

    def update_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Write what is known of many flows."""
        for key, value in entries.items():
            self.update(key, value)
        self._unmap()

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """Forget many flows; how many there were."""
        there = sum(map(self.delete, keys))
        self._unmap()
        return there

    def close(self) -> None:
        """Close it; the memory, too."""
        self._unmap()
        super().close()

    # --- lines -----------------------------------------------------------------------------------

    def _view(self, kind: str) -> memoryview:
        memory = self._open.enter_context(self.memory())
        view: memoryview = memoryview(memory).cast("B").cast(kind)  # type: ignore[call-overload]  # "B", "I", "Q"
        self._open.callback(view.release)
        return view

    @cached_property
    def _open(self) -> ExitStack:
        return ExitStack()

    @cached_property
    def _words(self) -> memoryview:
        return self._view("Q")

    @cached_property
    def _ticks(self) -> memoryview:
        return self._view("I")

    def _unmap(self) -> None:
        """Have no memory of the table: what is mapped counts as this process's."""
        self._open.close()
        for name in ("_words", "_ticks"):
            self.__dict__.pop(name, None)

    @cached_property
    def _bits(self) -> int:
        return (self.layout.value_size // _SIZE).bit_length() - 1

    def _start(self, key: bytes) -> int:
        """The first byte of a flow's line."""
        return (mixed(key) >> 64 - self._bits) * _SIZE

    @staticmethod
    def _word(key: bytes) -> int:
        """A flow's word, but for its server."""
        return mixed(key) << _SHORT & _U64 | _KNOWN

    def _flows(self, place: int, line: tuple[int, ...]) -> Iterator[tuple[bytes, bytes]]:
        """The flows of a line."""
        upper = place >> self._bits - _SHORT << 48
        for word, refreshed in zip(line, line[layout.FLOWS_IN_LINE :], strict=False):
            if word:
                bits = (upper | word >> _SHORT) * _BACK & _U64
                state = LearnedState.CLOSING if word & _CLOSING else LearnedState.OPEN
                yield (
                    bits.to_bytes(8, sys.byteorder),
                    layout.LEARNED.pack(word & _SERVER, state, refreshed),
                )
