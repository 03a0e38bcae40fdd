"""What `lbdr doctor` says of the kernel and the firewall; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lbdr.alone import needs
from lbdr.doctor_facts import Finding, FirewallChain, HostFacts, Ipvs, Level
from lbdr.marks import needing
from lbdr.model import Configuration, Forwarding

_DEFAULT_MH_SLOTS = 4093  # Debian's, and what lbdr assumes
_MIN_MEMLOCK = 64 << 20


def _ipvs(facts: HostFacts, configuration: Configuration) -> Iterator[Finding]:
    direct = [each for each in configuration.virtual_services if each.forwarding is Forwarding.DR]
    others = [each.name for each in direct if any(needs(each))]
    if facts.ipvs is Ipvs.LOADED:
        yield Finding(Level.OK, "ipvs", "loaded")
    elif facts.ipvs is Ipvs.LOADABLE:
        yield Finding(Level.OK, "ipvs", "a module; it is loaded when a director starts")
    elif facts.ipvs is Ipvs.UNKNOWN:
        yield Finding(
            Level.NOTE,
            "ipvs",
            "not loaded, and whether there is a module cannot be seen",
            "only `mh` services can do without",
            "modprobe ip_vs",
        )
    else:
        yield Finding(
            Level.FAULT if others else Level.WARNING,
            "ipvs",
            "this kernel has none",
            f"it decides for {', '.join(others)}"
            if others
            else "`mh` services run on XDP or tc alone: what it cannot forward is dropped",
            "run a kernel with CONFIG_IP_VS (Debian's linux-image-amd64 has it)",
        )
        return
    if any(each.scheduler == "mh" for each in direct):
        yield from _mh(facts)
    for name, wanted in facts.wanted_sysctls.items():
        value = facts.sysctls.get(name)
        if value is not None and value != wanted:
            yield Finding(
                Level.NOTE,
                "ipvs",
                f"{name} is {value}, a director of this configuration sets {wanted}",
                "no daemon runs here, or somebody changed it just now",
                f"lbdr daemon, or once: sysctl -w {name}={wanted}",
            )
    sloppy = "net.ipv4.vs.sloppy_tcp"
    if facts.sysctls.get(sloppy) == "1" and sloppy not in facts.wanted_sysctls:
        yield Finding(
            Level.WARNING,
            "ipvs",
            f"{sloppy} is 1, and no service of this configuration is `mh`",
            "late packets are scheduled anew, and spoofed ones make connections",
            f"sysctl -w {sloppy}=0",
        )


def _mh(facts: HostFacts) -> Iterator[Finding]:
    size = facts.mh_table_size
    if size is None:
        yield Finding(
            Level.NOTE,
            "ipvs",
            f"the kernel's mh table size is not told; {_DEFAULT_MH_SLOTS} slots are assumed",
            "with another size the fast path would choose differently; the daemon tries it at its "
            "start",
            "install the kernel's configuration: /boot/config-$(uname -r)",
        )
    else:
        yield Finding(Level.OK, "ipvs", f"mh tables have {size} slots")


def _firewall(facts: HostFacts, _: Configuration) -> Iterator[Finding]:
    counted = [chain for chain in facts.firewall if chain.rules != 0 or chain.drops]
    if not counted and facts.firewall_seen:  # else it is said under "not seen"
        yield Finding(Level.OK, "firewall", "no rules before IPVS that the fast path bypasses")
    for chain in counted:
        yield _bypassed(chain)


def _bypassed(chain: FirewallChain) -> Finding:
    rules = "rules" if chain.rules is None else f"{chain.rules} rule{'s' * (chain.rules != 1)}"
    what = f"{chain.where} ({chain.hook}) has {rules}" + (", policy drop" * chain.drops)
    remedy = (
        f"read them (`{chain.listing}`); what is to hold for VIPs belongs before the director, or "
        "on the real servers"
    )
    if chain.kind != "filter":
        why = f"{chain.kind} rules do not act on what the fast path forwards"
        return Finding(Level.NOTE, "firewall", what, why, remedy)
    why = "IPVS obeys them, the fast path runs before them: packets of VIPs are not filtered there"
    return Finding(Level.WARNING, "firewall", what, why, remedy)


def _marks(facts: HostFacts, configuration: Configuration) -> Iterator[Finding]:
    names = [virtual.name for virtual in needing(configuration)]
    for chain in facts.firewall:
        if names and chain.marks:
            yield Finding(
                Level.WARNING,
                "firewall",
                f"{chain.where} ({chain.hook}) is of a table whose rules "
                f"{'may ' * (chain.rules is None)}set or match packet marks",
                f"IPVS knows {', '.join(names)} by marks of {configuration.director.marks}, which "
                "are set before: a rule that sets another one takes their packets from IPVS",
                f"read them (`{chain.listing}`); other marks for lbdr: `director: marks`",
            )


def _bpf(facts: HostFacts, _: Configuration) -> Iterator[Finding]:
    yield from _pins(facts)
    yield from _jit(facts)
    yield from _limits(facts)


def _pins(facts: HostFacts) -> Iterator[Finding]:
    if facts.bpffs:
        yield Finding(Level.OK, "bpf", "/sys/fs/bpf is a BPF file system")
    if facts.bpffs is False:
        yield Finding(
            Level.WARNING,
            "bpf",
            "/sys/fs/bpf is no BPF file system",
            "programs and tables are pinned there; without it there is no fast path, only IPVS",
            "mount -t bpf bpf /sys/fs/bpf (`ip netns exec` hides one, `nsenter --net=` does not)",
        )


def _jit(facts: HostFacts) -> Iterator[Finding]:
    jit = facts.sysctls.get("net.core.bpf_jit_enable")
    why = "BPF programs are interpreted without it, several times slower"
    if facts.config and facts.config.get("CONFIG_BPF_JIT") != "y":
        remedy = "run a kernel with CONFIG_BPF_JIT"
        yield Finding(Level.WARNING, "bpf", "this kernel has no JIT compiler", why, remedy)
    elif jit not in (None, "0") or facts.config.get("CONFIG_BPF_JIT_ALWAYS_ON") == "y":
        yield Finding(Level.OK, "bpf", "the JIT compiler is on")
    elif jit == "0":
        remedy = "sysctl -w net.core.bpf_jit_enable=1"
        yield Finding(Level.WARNING, "bpf", "the JIT compiler is off", why, remedy)
    else:
        remedy = "as root, in the machine's own namespace: sysctl net.core.bpf_jit_enable"
        yield Finding(
            Level.NOTE, "bpf", "whether the JIT compiler is on cannot be seen here", why, remedy
        )


def _limits(facts: HostFacts) -> Iterator[Finding]:
    if facts.sysctls.get("kernel.unprivileged_bpf_disabled") == "0":
        yield Finding(
            Level.WARNING,
            "bpf",
            "every user may load BPF programs",
            "the director needs none of that, and CPUs leak through it (Spectre)",
            "sysctl -w kernel.unprivileged_bpf_disabled=1",
        )
    if facts.memlock is not None and facts.memlock < _MIN_MEMLOCK:
        yield Finding(
            Level.WARNING,
            "bpf",
            f"at most {facts.memlock >> 10} KiB may be locked, and this kernel (before 5.11) "
            "counts BPF tables as locked",
            "tables may be refused with EPERM",
            "ulimit -l unlimited; LimitMEMLOCK=infinity in the unit",
        )
    if facts.lockdown == "confidentiality":
        yield Finding(
            Level.NOTE,
            "bpf",
            "kernel lockdown: confidentiality",
            "tracing tools that read kernel memory are refused; XDP and tc programs are not",
        )
    if facts.xdp_link is False or facts.tcx is False:
        missing = [
            name for name, there in (("XDP", facts.xdp_link), ("tc", facts.tcx)) if not there
        ]
        yield Finding(
            Level.NOTE,
            "bpf",
            f"no links for {' and '.join(missing)} in Linux {facts.kernel}",
            "programs are attached by netlink there: anybody's `ip link` or `tc` removes them",
        )


HOST_RULES: tuple[Callable[[HostFacts, Configuration], Iterator[Finding]], ...] = (
    _ipvs,
    _firewall,
    _marks,
    _bpf,
)
