"""The table of the kernel's mh scheduler (Maglev hashing), bit by bit; pure.

A table maps a client to a real server without remembering the client. It depends on the *order* of
the real servers in the kernel's list, as a dump shows it, so that order is part of the input.

Source: net/netfilter/ipvs/ip_vs_mh.c; Eisenbud et al., Maglev: A Fast and Reliable Software Network
Load Balancer, NSDI 2016; lib/siphash.c (hsiphash_1u32 on a 64-bit machine).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lbdr.model import Address

TABLE_SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)
"""Primes by CONFIG_IP_VS_MH_TAB_INDEX, from 8 to 17."""

DEFAULT_INDEX = 12
"""The kernel's default of CONFIG_IP_VS_MH_TAB_INDEX; Debian's too."""

EMPTY = -1
"""A slot's value where no server has a weight."""

KEY1 = 2654435761  # 2^32 times the golden ratio
KEY2 = 2654446892

_M64 = (1 << 64) - 1
_M32 = (1 << 32) - 1
_SIP = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


@dataclass(frozen=True, slots=True)
class MaglevServer:
    """A real server as mh sees it.

    Args:
        address: its RIP.
        port: as the kernel has it: the service's in DR, 0 for any port.
        weight: the last one that was not 0; 0 where there never was one.
    """

    address: Address
    port: int
    weight: int


def table_size(index: int = DEFAULT_INDEX) -> int:
    """Slots of the table of a kernel.

    Args:
        index: CONFIG_IP_VS_MH_TAB_INDEX, 8 to 17.
    """
    return TABLE_SIZES[index - 8]


def hash_u32(value: int, key: int) -> int:
    """SipHash-1-3 of four bytes, little endian, with both key words alike, cut to 32 bits."""
    v0, v1, v2, v3 = (word ^ key for word in _SIP)
    block = 4 << 56 | value
    v3 ^= block
    for round_ in range(4):
        v0 = (v0 + v1) & _M64
        v1 = (v1 << 13 | v1 >> 51) & _M64 ^ v0
        v0 = (v0 << 32 | v0 >> 32) & _M64
        v2 = (v2 + v3) & _M64
        v3 = (v3 << 16 | v3 >> 48) & _M64 ^ v2
        v0 = (v0 + v3) & _M64
        v3 = (v3 << 21 | v3 >> 43) & _M64 ^ v0
        v2 = (v2 + v1) & _M64
        v1 = (v1 << 17 | v1 >> 47) & _M64 ^ v2
        v2 = (v2 << 32 | v2 >> 32) & _M64
        if round_ == 0:
            v0 ^= block
            v2 ^= 0xFF
    return (v0 ^ v1 ^ v2 ^ v3) & _M32


def fold(address: Address) -> int:
    """An address as the 32 bits that mh hashes: IPv6 is the XOR of its four words."""
    value = int(address)
    folded = 0
    while value:
        folded ^= value & _M32
        value >>= 32
    return folded


def hash_endpoint(address: Address, port: int, key: int, offset: int = 0) -> int:
    """The hash of an address and a port, as mh has it (ip_vs_mh_hashkey).

    Args:
        address: a client's or a real server's.
        port: in host order; 0 where ports do not count.
        key: KEY1 or KEY2.
        offset: of the fallback loop.
    """
    return hash_u32((offset + port + fold(address)) & _M32, key)


def turns(servers: Sequence[MaglevServer], index: int = DEFAULT_INDEX) -> list[int]:
    """Slots that each server takes in a pass over all of them; 0 for one without a weight.

    Weights are divided by their greatest common divisor, and shifted so that the greatest fits half
    of the table's bits (ip_vs_mh_shift_weight).
    """
    positive = [server.weight for server in servers if server.weight > 0]
    if not positive:
        return [0] * len(servers)
    divisor = math.gcd(*positive)
    shift = max(0, (max(positive) // divisor).bit_length() - index // 2)
    return [
        max(1, server.weight // divisor >> shift) if server.weight > 0 else 0 for server in servers
    ]


class MaglevTable:
    """Which server each slot belongs to.

    Args:
        servers: in the order of the kernel's list.
        index: CONFIG_IP_VS_MH_TAB_INDEX of the kernel.
    """

    def __init__(self, servers: Sequence[MaglevServer], index: int = DEFAULT_INDEX) -> None:
        self.servers = tuple(servers)
        self.size = table_size(index)
        self.slots = _populate(self.servers, turns(self.servers, index), self.size)

    def slot(self, client: Address, port: int = 0) -> int:
        """The slot of a client.

        Args:
            client: its address.
            port: its port with mh-port, else 0.
        """
        return hash_endpoint(client, port, KEY1) % self.size

    def choose(
        self,
        client: Address,
        port: int = 0,
        *,
        unavailable: Collection[int] = (),
        fallback: bool = True,
    ) -> int | None:
        """The server for a client, by its place in the list; None where none takes it.

        Args:
            client: its address.
            port: its port with mh-port, else 0.
            unavailable: places of servers that take no new connections: weight 0 or overloaded.
            fallback: whether the service has mh-fallback.
        """
        slot = self.slot(client, port)
        server = self.slots[slot]
        if server == EMPTY:
            return None
        if server not in unavailable:
            return server
        if not fallback:
            return None
        for offset in range(self.size):
            again = hash_endpoint(client, port, KEY1, (offset + slot) % self.size) % self.size
            if self.slots[again] not in unavailable:
                return self.slots[again]
        return None


def _populate(servers: Sequence[MaglevServer], shares: Sequence[int], size: int) -> array[int]:
    """ip_vs_mh_permutate and ip_vs_mh_populate.

    A server that took a slot starts its next search there: the slot is found taken, and the search
    goes on from it.
    """
    slots = array("i", [EMPTY]) * size
    if not any(shares):
        return slots
    taking = [
        (
            place,
            share,
            hash_endpoint(server.address, server.port, KEY2) % (size - 1) + 1,
        )
        for place, (server, share) in enumerate(zip(servers, shares, strict=True))
        if share
    ]
    position = [hash_endpoint(server.address, server.port, KEY1) % size for server in servers]
    free = size
    while True:
        for place, share, skip in taking:
            at = position[place]
            for _ in range(share):
                while slots[at] != EMPTY:
                    at += skip
                    if at >= size:
                        at -= size
                slots[at] = place
                free -= 1
                if not free:
                    return slots
            position[place] = at
