"""What `lbdr doctor` says of a device; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lbdr.doctor_facts import Device, Finding, HostFacts, Level, Place

NATIVE_MTU = 3500
"""Bytes above which native XDP needs xdp.frags: a page of 4096 less headroom and shared info."""

LRO, HARDWARE_GRO, STRIPPING = "rx-lro", "rx-gro-hw", "rx-vlan-hw-parse"
FEATURES = {LRO: "lro", HARDWARE_GRO: "rx-gro-hw", STRIPPING: "rxvlan"}
"""Features that matter, by the kernel's names, and ethtool's words for them."""

NATIVE_DRIVERS = frozenset(
    [
        "am65-cpsw-nuss",
        "atlantic",
        "bnxt_en",
        "bonding",
        "cpsw",
        "ena",
        "fec",
        "fsl_dpaa2_eth",
        "fsl_dpa",
        "fsl_enetc",
        "gve",
        "hv_netvsc",
        "i40e",
        "ice",
        "igb",
        "igc",
        "ixgbe",
        "ixgbevf",
        "lan966x",
        "mana",
        "mlx4_en",
        "mlx5_core",
        "mvneta",
        "mvpp2",
        "mtk_soc_eth",
        "netsec",
        "nfp",
        "nicvf",
        "qede",
        "sfc",
        "st_gmac",
        "stmmac",
        "tsnep",
        "tun",
        "veth",
        "vif",
        "virtio_net",
        "vmxnet3",
    ]
)
"""Drivers with ndo_bpf for XDP (drivers/net), by the names that `ethtool -i` shows."""

_WITHOUT_NATIVE = frozenset(
    [
        "bridge",
        "dummy",
        "gre",
        "gretap",
        "ifb",
        "ip6gre",
        "ip6gretap",
        "ip6tnl",
        "ipip",
        "ipvlan",
        "ipvtap",
        "macvlan",
        "macvtap",
        "macsec",
        "sit",
        "team",
        "vrf",
        "vxlan",
        "wireguard",
    ]
)
_NEVER_NATIVE = "has no native XDP"


def _mode(device: Device, _: HostFacts) -> Iterator[Finding]:
    """Where the program runs, or would."""
    what_for = f" ({', '.join(device.uses)})" if device.uses else ""
    name = f"{device.kind or 'NIC'}, driver {device.driver or 'none'}{what_for}"
    ours = next((each for each in device.programs if each.ours), None)
    native_can = device.driver in NATIVE_DRIVERS and device.kind not in _WITHOUT_NATIVE
    if device.lower:
        yield Finding(
            Level.OK, device.name, f"{name}: the fast path is on {device.lower} and reads the tag"
        )
    elif ours is not None and (ours.place is Place.NATIVE or not native_can):
        yield Finding(Level.OK, device.name, f"{name}: the fast path runs as {ours.place}")
    elif ours is not None:
        yield Finding(
            Level.NOTE,
            device.name,
            f"{name}: the fast path runs as {ours.place}, though the driver can do native XDP",
            "native XDP takes a frame before the kernel makes a packet of it",
            "lbdr status (it says why); the findings below name what keeps drivers from it",
        )
    elif device.loopback or device.kind in _WITHOUT_NATIVE:
        yield Finding(
            Level.NOTE,
            device.name,
            f"{name}: {'lo' if device.loopback else device.kind} {_NEVER_NATIVE}",
            "the same program runs at tc ingress, which costs more for each packet, and less than "
            "generic XDP",
            "for more speed put the VIP's subnet on a NIC or on a VLAN of one",
        )
    elif device.kind == "bond":
        yield Finding(
            Level.OK,
            device.name,
            f"{name}: native XDP if each of {', '.join(device.ports) or 'its ports'} can",
        )
    elif native_can:
        yield Finding(Level.OK, device.name, f"{name}: native XDP is likely")
    else:
        yield Finding(
            Level.NOTE,
            device.name,
            f"{name}: not known to have native XDP",
            "attaching tells; where the driver cannot, the same program runs at tc ingress",
            "a NIC with one of these drivers is faster: i40e, ice, ixgbe, mlx5_core, bnxt_en, igb",
        )
    if device.kind == "veth":
        yield Finding(
            Level.NOTE,
            device.name,
            "veth: frames that native XDP sends back are received only by a peer with an XDP "
            "program",
            "without one the peer drops them silently",
            "attach any XDP program that passes on the peer, and there `ethtool -K PEER tx off`",
        )


def _foreign(device: Device, _: HostFacts) -> Iterator[Finding]:
    for program in device.programs:
        if program.ours:
            continue
        name = f"program {program.id}" + (f" ({program.name})" if program.name else "")
        who = f", held by {', '.join(program.holders)}" if program.holders else ""
        told = "" if program.ours is False else "; without root it cannot be told whose"
        what = f"{name} is attached as {program.place}{who}{told}"
        if program.ours is None or program.place is Place.TC:
            yield Finding(
                Level.NOTE,
                device.name,
                what,
                "a program of someone else that runs first may take packets of a VIP",
                f"bpftool prog show id {program.id}",
            )
            continue
        yield Finding(
            Level.WARNING,
            device.name,
            what,
            "a device runs one XDP program, and lbdr replaces none of others: the fast path is at "
            "tc ingress, and sees what that program passes",
            f"stop what attached it, or `ip link set dev {device.name} xdp off` (a program of a "
            "link: `bpftool link show`, `bpftool link detach id ID`)",
        )


def _features(device: Device, _: HostFacts) -> Iterator[Finding]:
    if device.has(LRO):
        yield Finding(
            Level.FAULT,
            device.name,
            "LRO is on",
            "it merges frames into ones that can be neither forwarded nor split again, and drivers "
            "refuse native XDP with it",
            _switch(device, LRO),
        )
    if device.has(HARDWARE_GRO):
        yield Finding(
            Level.WARNING,
            device.name,
            "hardware GRO is on",
            "frames merged by the NIC are larger than the MTU for XDP, and virtio_net and others "
            "refuse native XDP with it",
            _switch(device, HARDWARE_GRO),
        )
    if device.vlans and device.has(STRIPPING):
        yield Finding(
            Level.WARNING,
            device.name,
            f"the NIC strips VLAN tags, and {', '.join(device.vlans)} sit on it",
            "XDP sees no tag then, takes such a frame for an untagged one and leaves it to tc "
            "ingress",
            _switch(device, STRIPPING),
        )
    if device.promiscuous:
        yield Finding(
            Level.NOTE,
            device.name,
            "it is promiscuous",
            "frames for others cost CPU time; the fast path takes only those to its own MAC",
            f"find who set it (`ip -d link show dev {device.name}`); a capture, or a bridge's port",
        )


def _switch(device: Device, feature: str) -> str:
    if device.features[feature].changeable:
        return f"ethtool -K {device.name} {FEATURES[feature]} off"
    if device.driver == "virtio_net":
        return (
            "fixed by the hypervisor: turn its offloads off there (libvirt: <driver><guest "
            "tso4='off' tso6='off' ecn='off' ufo='off'/></driver>)"
        )
    return f"the driver does not let it be changed (`ethtool -k {device.name}`): fixed"


def _mtu(device: Device, facts: HostFacts) -> Iterator[Finding]:
    if device.mtu <= NATIVE_MTU or device.loopback or device.lower:
        return
    what = f"the MTU is {device.mtu}, above {NATIVE_MTU}"
    if facts.xdp_frags is False:
        yield Finding(
            Level.WARNING,
            device.name,
            what,
            "native XDP takes frames of one page only, and this kernel has no xdp.frags (Linux "
            "5.18): the fast path is at tc ingress",
            f"ip link set dev {device.name} mtu 1500, or a newer kernel",
        )
        return
    yield Finding(
        Level.NOTE,
        device.name,
        what,
        "native XDP needs xdp.frags then, which not every driver has; without, the fast path is at "
        "tc ingress",
        f"if `lbdr status` shows tc: ip link set dev {device.name} mtu {NATIVE_MTU}",
    )


def _channels(device: Device, facts: HostFacts) -> Iterator[Finding]:
    channels = device.channels
    if channels is None or device.kind:
        return
    most = max(channels.max_combined, channels.max_rx)
    if channels.receiving < min(facts.cpus, max(most, 1)):
        word = "combined" if channels.max_combined else "rx"
        yield Finding(
            Level.WARNING,
            device.name,
            f"{channels.receiving} receive queues for {facts.cpus} CPUs, of {most} that it has",
            "each queue is one CPU's: the others do not forward",
            f"ethtool -L {device.name} {word} {min(facts.cpus, most)}",
        )
    elif channels.receiving < facts.cpus:
        yield Finding(
            Level.NOTE,
            device.name,
            f"{channels.receiving} receive queues for {facts.cpus} CPUs, and it has no more",
            "each queue is one CPU's: the others do not forward; XDP_TX of several CPUs shares "
            "queues",
            "give the (virtual) NIC more queues, or the machine fewer CPUs",
        )
    if channels.sending < channels.receiving:
        yield Finding(
            Level.WARNING,
            device.name,
            f"{channels.sending} send queues for {channels.receiving} receive queues",
            "XDP_TX needs a send queue for each CPU that receives: drivers refuse, or share them",
            f"ethtool -L {device.name} tx {channels.receiving}",
        )


def _martians(device: Device, _: HostFacts) -> Iterator[Finding]:
    if device.sysctls.get("rp_filter") == 1:
        yield Finding(
            Level.NOTE,
            device.name,
            "rp_filter is strict (1)",
            "IPVS never gets packets of clients whose way back is another interface; the fast path "
            "does not ask, so that such clients work in XDP and not in IPVS",
            f"with several interfaces: sysctl -w net.ipv4.conf.{_conf(device)}.rp_filter=2",
        )
    if device.sysctls.get("log_martians"):
        yield Finding(
            Level.NOTE,
            device.name,
            "log_martians is on",
            "what a real server sends from the VIP through this machine is a martian here, logged "
            "each time; it should go to the client directly",
            "check the real servers' gateway",
        )


def _conf(device: Device) -> str:
    return device.name.replace(".", "/")


DEVICE_RULES: tuple[Callable[[Device, HostFacts], Iterator[Finding]], ...] = (
    _mode,
    _foreign,
    _features,
    _mtu,
    _channels,
    _martians,
)
