"""Ways through VLAN devices, which this kernel has and a cloud's may not (8021q)."""

from __future__ import annotations

from ipaddress import ip_address

from netlab import INTERFACE, Lab, wait_for

from lbdr.datapath.egress import Path
from tests.neighbours import index_of, keep, observe, table

OTHER_MAC = "02:77:00:00:00:ee"


def test_vlan_devices_are_descended(lab: Lab) -> None:
    """One tag, two tags with a MAC and MTU of the VLAN device's own, and three: too many."""
    for host, last, mac in (("director", 1, "02:77:00:00:01:01"), ("web1", 2, OTHER_MAC)):
        lab.ip(
            host,
            f"link add link {INTERFACE} name one up type vlan id 7",
            f"link add link {INTERFACE} name outer up type vlan protocol 802.1ad id 100",
            f"link add link outer name two address {mac} mtu 1400 up type vlan id 200",
            "link add link two name three up type vlan id 300",
            f"address add 10.78.1.{last}/24 dev one",
            f"address add 10.78.2.{last}/24 dev two",
            f"address add 10.78.3.{last}/24 dev three",
        )
    one, two, three = (ip_address(f"10.78.{number}.2") for number in (1, 2, 3))
    paths = keep(lab, one, two)
    own, server = lab["director"], lab["web1"]
    index = index_of(lab, INTERFACE)
    assert paths[one] == Path(index, 1500, own.mac, ((0x8100, 7),), server.mac, local=False)
    tags = ((0x88A8, 100), (0x8100, 200))
    assert paths[two] == Path(index, 1400, "02:77:00:00:01:01", tags, OTHER_MAC, local=False)
    keep(lab, three, wait=False)
    wait_for(lambda: "lladdr" in table(lab)[str(three)], "an entry behind three tags")
    path = observe(lab, three)[three]
    assert path is not None
    assert path.mac is None
