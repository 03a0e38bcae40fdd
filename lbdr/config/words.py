"""Words that users bring from keepalived, ldirectord, ipvsadm, HAProxy and appliances.

Sources: keepalived.conf(5), ldirectord(8), ipvsadm(8), HAProxy's configuration manual.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lbdr.config.yaml_errors import short

_CLOSE = 0.7  # difflib's ratio from which a misspelt key is named
_CLOSE_NAME = 0.6  # and a misspelt value
_LONGEST = 64  # of what may be a misspelling: difflib takes quadratic time


@dataclass(frozen=True, slots=True)
class UnknownKey:
    """What to say about a key that the schema does not have.

    Args:
        message: what is wrong.
        hint: the remedy.
        meant: our key that was probably meant, here; empty where none was.
    """

    message: str
    hint: str
    meant: str = ""


def _all(ours: str, *foreign: str) -> dict[str, str]:
    return dict.fromkeys(foreign, ours)


def _keys(*rows: tuple[str, str]) -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for ours, foreign in rows:
        for word in foreign.split():
            table[word] = (*table.get(word, ()), ours)
    return table


_KEYS = _keys(
    ("virtual_services", "virtual_server virtual_servers virtual virtuals vips vip services"),
    ("virtual_services", "virtual_service frontend frontends listen virtual_server_group"),
    ("real_servers", "real_server real reals rips rip realservers realserver servers server"),
    ("real_servers", "backend backends pool members nodes destinations dests targets"),
    ("director", "global_defs global globals load_balancer loadbalancer lb"),
    ("forwarding", "lb_kind lvs_method forwarding_method method packet_forward fwd_method mode"),
    ("forwarding", "gate masq gatewaying dr direct forward kind lb_mode"),
    ("scheduler", "lb_algo lvs_sched sched algorithm algo balance scheduling lb_method"),
    ("scheduler", "balance_mode"),
    ("scheduler_flags", "sched_flags flags hash_port sh_port sh_fallback mh_port mh_fallback"),
    ("persistence", "persistence_timeout persistent persist sticky stickiness stick_table"),
    ("persistence", "persistent_timeout session_persistence timeout"),
    ("granularity", "persistence_granularity persistent_netmask netmask"),
    ("one_packet", "ops onepacket one_packet_scheduling"),
    ("sorry_server", "sorryserver fallback fallback_server sorry backup"),
    ("address", "ip vip rip addr host ip_address virtual_ip virtual_ipaddress ipaddress"),
    ("address", "ipaddr virtual_address real_ip bind"),
    ("ports", "port virtual_port vport port_range"),
    ("port", "ports real_port rport"),
    ("protocol", "proto ip_protocol service_type"),
    ("interface", "dev device nic iface eth"),
    ("upper_threshold", "uthreshold u_threshold maxconn max_connections maxconns"),
    ("lower_threshold", "lthreshold l_threshold minconn min_connections"),
    ("server", "real_server name realserver host ip rip address real"),
    ("weight", "priority ratio"),
    ("name", "router_id hostname lvs_id"),
    ("role", "state initial_state"),
    ("timeouts", "lvs_timeouts ipvs_timeouts timeout"),
    ("tcp_fin", "tcpfin fin"),
    ("gratuitous_arp", "garp arping gratuitous"),
    ("repeat", "garp_master_repeat garp_repeat"),
    ("delay", "garp_master_delay garp_delay"),
    ("refresh", "garp_master_refresh garp_refresh"),
    ("refresh_repeat", "garp_master_refresh_repeat"),
    ("fastpath", "fast_path xdp bpf ebpf offload"),
    ("check", "checks health_check healthcheck checktype check_type service monitor httpchk"),
    ("check", "tcp_check http_get ssl_get misc_check smtp_check dns_check udp_check"),
    ("type", "check_type kind checktype"),
    ("ports", "checkport connect_port check_port"),
    ("interval", "delay_loop checkinterval inter delay_before_retry"),
    ("timeout", "checktimeout negotiatetimeout connect_timeout misc_timeout"),
    ("fall", "retry checkcount failurecount fails"),
    ("rise", "passes"),
    ("command", "checkcommand misc_path path_script"),
    ("send", "request"),
    ("expect", "receive"),
    ("method", "httpmethod"),
    ("host", "virtualhost"),
    ("health", "inhibit_on_failure quorum_up quorum_down hysteresis warmup slowstart"),
    ("slow_start", "warmup slowstart"),
    ("on_failure", "inhibit_on_failure"),
    ("quorum", "quorum_up quorum_down hysteresis"),
    ("feedback", "agent agent_check feedback_agent"),
)
"""Foreign keys and ours: of several, the one that the section has counts."""

_LAYER_7 = "Layer 7 services"
_LATER: Mapping[str, str] = {
    **_all("logins in checks", "login", "passwd"),
    **_all("notifications", "notify_up", "notify_down", "notify_master", "notify_backup"),
    **_all(_LAYER_7, "rules", "tls", "ssl", "cookie", "certificate", "called_ae", "acl", "acls"),
    **_all(_LAYER_7, "use_backend", "default_backend", "http", "dicom", "timeouts_proxy"),
    **_all("packet marks of the user's", "fwmark", "mark", "firewall_mark"),
    **_all("election of a director", "vrrp_instance", "vrrp_sync_group", "virtual_router_id"),
    **_all("election of a director", "advert_int", "failover", "peer", "peers", "heartbeat"),
    **_all("synchronised connections", "lvs_sync_daemon", "sync", "syncd", "sync_daemon"),
    **_all("notifications", "emailalert", "notification_email", "smtp_server", "smtp_alert"),
    **_all("metrics", "metrics", "prometheus"),
    **_all("control settings", "control_group", "control", "socket"),
}
"""Keys for what this version does not have, and what that is."""

_WITHOUT: Mapping[str, str] = {
    "quiescent": "lbdr has no such switch: weight 0 drains a real server",
    "ha_suspend": "lbdr has no such switch",
    "autoreload": "`lbdr reload` reloads the file",
    "logfile": "lbdr logs to the journal",
    "fork": "lbdr has no such switch",
    "supervised": "lbdr has no such switch",
    "cleanstop": "stopping leaves the traffic running; `lbdr withdraw` takes all of it down",
    "nat": "lbdr forwards by dr",
    "tun": "lbdr forwards by dr",
    "include": "one file holds the configuration",
}


def normal(key: str) -> str:
    """A key without what different programs write differently."""
    return key.strip().lower().replace("-", "_").replace(" ", "_")


def unknown_key(
    key: str, allowed: Collection[str], elsewhere: Mapping[str, str], siblings: Collection[str]
) -> UnknownKey:
    """What to say about a key that its section does not have.

    Args:
        key: as written.
        allowed: the section's keys.
        elsewhere: keys of other sections, and where those stand.
        siblings: the keys that the user wrote beside it.
    """
    word = normal(key)
    shown = short(key)
    unknown = f"unknown key `{shown}`; allowed here: {', '.join(allowed)}"
    meant = _meant(word, allowed)
    if meant:
        again = ", which stands here already" if meant in siblings else ""
        return UnknownKey(unknown, f"write `{meant}`{again}", meant)
    if word in _WITHOUT:
        return UnknownKey(unknown, _WITHOUT[word])
    if word in _LATER:
        return UnknownKey(
            f"this version of lbdr does not know `{shown}`: it has no {_LATER[word]}",
            "leave it out",
        )
    for ours in (word, *_KEYS.get(word, ())):
        if ours in elsewhere:
            return UnknownKey(unknown, f"write `{ours}` {elsewhere[ours]}")
    return UnknownKey(unknown, "")


def _meant(word: str, allowed: Collection[str]) -> str:
    for ours in (word, *_KEYS.get(word, ())):
        if ours in allowed:
            return ours
    if word in _LATER or word in _WITHOUT or word in _KEYS:
        return ""
    return _closest(word, allowed, _CLOSE)


_DR_ONLY = "this version forwards by dr alone"
VALUES: Mapping[str, Mapping[str, str]] = {
    "forwarding": {
        **_all("write dr", "gate", "gatewaying", "route", "direct", "direct_routing", "g", "l4_dr"),
        **_all("write dr", "layer_4_dr", "dsr", "lvs_dr"),
        **_all(_DR_ONLY, "masq", "masquerade", "masquerading", "nat", "fullnat", "snat", "m"),
        **_all(
            _DR_ONLY, "tun", "tunnel", "tunneling", "ipip", "gue", "gre", "i", "local", "bypass"
        ),
        **_all("write proxy", "l7", "layer_7", "http", "haproxy", "layer_7_reverse_proxy"),
    },
    "scheduler": {
        **_all("write rr", "roundrobin", "round_robin"),
        **_all("write wrr", "weighted_round_robin", "static_rr"),
        **_all("write lc", "least_connections", "least_connection"),
        **_all("write wlc", "leastconn", "weighted_least_connections", "least_conn"),
        **_all("write wlc", "weighted_least_connection"),
        **_all("write sh", "source", "source_hash", "source_hashing", "ip_hash"),
        **_all("write dh", "destination_hash", "destination_hashing"),
        **_all("write mh", "maglev", "consistent_hash", "consistent"),
        **_all("write sed", "shortest_expected_delay"),
        **_all("write nq", "never_queue"),
        **_all("write fo", "failover", "weighted_failover", "first"),
        **_all("write ovf", "overflow", "weighted_overflow"),
        **_all("write twos", "random", "p2c", "power_of_two", "two_random_choices"),
    },
    "protocol": {
        **_all("Layer 7 services are not in this version: write tcp", "http", "https", "dicom"),
        **_all("Layer 7 services are not in this version: write tcp", "hl7", "mllp"),
        "6": "write tcp",
        "17": "write udp",
        "132": "write sctp",
    },
    "role": {
        **_all("write active", "master", "primary", "leader"),
        **_all("write standby", "backup", "slave", "secondary", "passive"),
    },
    "scheduler_flag": {
        **_all("write mh-port or sh-port", "port", "flag_2", "2"),
        **_all("write mh-fallback or sh-fallback", "fallback", "flag_1", "1"),
    },
}
"""Foreign values by what they are for, and what to do about each."""


def value_hint(kind: str, value: Any, allowed: Collection[str]) -> str:
    """The remedy for a word that is none of those allowed; empty where there is none.

    Args:
        kind: a key of VALUES.
        value: what was found.
        allowed: the words.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    word = normal(str(value))
    by_normal = {normal(own): own for own in allowed}
    if word in by_normal:
        return f"write {by_normal[word]}"
    if word in VALUES.get(kind, {}):
        return VALUES[kind][word]
    return near(word, allowed)


def with_value(hint: str, ours: str, value: Any) -> str:
    """A hint at our key, with our word for the foreign value that was written.

    Args:
        hint: names our key.
        ours: our key.
        value: what the user gave the foreign one.
    """
    advice = value_hint(ours, value, ()) if ours in VALUES else ""
    if advice.startswith("write "):
        return f"write `{ours}: {advice.removeprefix('write ')}`"
    return f"{hint}; {advice}" if advice else hint


def near(word: str, allowed: Collection[str]) -> str:
    """A hint that names the nearest of the allowed words; empty where none is near."""
    close = _closest(word, allowed, _CLOSE_NAME)
    return f"did you mean {close}?" if close else ""


def _closest(word: str, allowed: Collection[str], ratio: float) -> str:
    close = difflib.get_close_matches(word, allowed, 1, ratio) if len(word) <= _LONGEST else []
    return close[0] if close else ""
