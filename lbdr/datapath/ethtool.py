"""What the kernel says of a device: its driver, features and channels; reads only, without root.

By ioctl, which every kernel has and which answers for the network namespace of the calling thread.
sysfs would not do: it shows the namespace in which it was mounted.

Sources: include/uapi/linux/ethtool.h, net/ethtool/ioctl.c, ethtool(8).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pyroute2.ethtool.ioctl import IoctlEthtool, NoSuchDevice, NotSupportedError

from lbdr.doctor_facts import Channels, Feature
from lbdr.errors import KernelError

T = TypeVar("T")

_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 0x3
_DRIVER_INFO = struct.Struct("=I32s160x")  # struct ethtool_drvinfo
_REQUEST = struct.Struct("16sP16x")  # struct ifreq


def driver(name: str) -> str:
    """The name of a device's driver; empty where it has none, as lo.

    Raises:
        KernelError: no such device.
    """
    room = ctypes.create_string_buffer(_DRIVER_INFO.pack(_ETHTOOL_GDRVINFO, b""))
    request = _REQUEST.pack(name.encode(), ctypes.addressof(room))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return ""
            raise KernelError(f"ethtool -i {name}", errno=error.errno or 0) from error
    found: bytes = _DRIVER_INFO.unpack_from(room)[1]
    return found.split(b"\0", 1)[0].decode("ascii", "replace")


def features(name: str) -> dict[str, Feature]:
    """A device's features by the kernel's names, as `rx-lro`; none where it tells of none.

    Raises:
        KernelError: no such device.
    """
    found = _asked(f"ethtool -k {name}", name, lambda device: list(device.get_features()))
    return {each[0]: Feature(bool(each[1]), bool(each[2])) for each in found or ()}


def channels(name: str) -> Channels | None:
    """A device's queues; None where its driver does not tell.

    Raises:
        KernelError: no such device.
    """
    found = _asked(f"ethtool -l {name}", name, lambda device: device.get_channels())
    if found is None:
        return None
    return Channels(
        rx=found.rx_count,
        tx=found.tx_count,
        combined=found.combined_count,
        max_rx=found.max_rx,
        max_tx=found.max_tx,
        max_combined=found.max_combined,
    )


def _asked(command: str, name: str, ask: Callable[[Any], T]) -> T | None:
    """The kernel's answer; None where the driver has none."""
    with _device(command, name) as device:
        try:
            return ask(device)
        except NotSupportedError:
            return None


@contextmanager
def _device(command: str, name: str) -> Iterator[Any]:
    device = IoctlEthtool()
    try:
        device.change_ifname(name)
        yield device
    except NoSuchDevice as error:
        raise KernelError(command, errno=errno.ENODEV) from error
    except OSError as error:
        raise KernelError(command, errno=error.errno or 0) from error
    finally:
        device.close()
