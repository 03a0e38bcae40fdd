"""HAProxy's answers, as version 2.6.12 gives them."""

from __future__ import annotations

import pytest

from lbdr.haproxy import answers
from lbdr.haproxy.answers import Kind, ServerState, TableEntry, Worker
from lbdr.haproxy.errors import ProxyError

STATISTICS = """\
# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,\
status,weight,act,bck,chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,lbtot,tracked,\
type,rate,rate_lim,rate_max,check_status,check_code,check_duration,hrsp_1xx,hrsp_2xx,hrsp_3xx,\
hrsp_4xx,hrsp_5xx,hrsp_other,
DB,FRONTEND,,,3,5,2000,12,100,200,1,0,2,,,,,OPEN,,,,,,,,,1,3,0,,,,0,4,0,9,,,,,,,,,,
DB,web1,0,2,1,2,,7,40,50,,0,,3,4,5,6,UP,7,1,0,,,0,,,1,3,1,,7,,2,1,,3,,,,0,1,2,3,4,0,
DB,BACKEND,0,0,1,2,200,9,40,50,0,0,,3,4,5,6,UP,7,1,0,,,0,,,1,3,0,,7,,1,1,,3,,,,,,,,,,

"""
STATES = """\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state \
srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl \
srv_check_port srv_check_addr srv_agent_addr srv_agent_port
4 DB 1 web1 10.77.0.21 2 0 1 1 5 1 0 2 0 0 0 0 - 1521 - 0 0 - - 0
4 DB 2 web2 10.77.0.22 0 1 3 1 5 1 0 2 0 0 0 0 - 0 - 0 0 - - 0
4 DB 3 named - 0 32 1 1 5 1 0 2 0 0 0 0 db.example.org 1521 - 0 0 - - 0

"""
TABLE = """\
# table: DB, type: ip, size:100000, used:2
0x55c9195f2fe0: key=10.77.0.150 use=0 exp=599968 server_id=1 server_key=web1
0x7ffa84033220: key=a b use=1 exp=0 conn_cnt=3

"""
PROCESSES = """\
#<PID>          <type>          <reloads>       <uptime>        <version>      \n\
440             master          2 [failed: 1]   0d00h00m07s     2.6.12-1+deb12u4
# workers
475             worker          1               1d02h03m04s     2.6.12-1+deb12u4
# old workers
460             worker          2               0d00h01m00s     2.6.12-1+deb12u4
# programs

"""
PEERS = """\
0x55c9193f56d0: [24/Nov/2026:11:56:54] id=lbdr disabled=0 flags={flags} resync_timeout=4s task_calls=11
  0x55c9193f5870: id=lbdr(local,inactive) addr=127.0.0.1:10001 last_status=NONE last_hdshk=<NEVER>
        flags=0x0
"""  # noqa: E501 (as HAProxy writes it)


def test_statistics() -> None:
    frontend, server, backend = answers.statistics(STATISTICS)
    assert (frontend.proxy, frontend.kind, frontend.server) == ("DB", Kind.FRONTEND, "")
    assert (frontend.sessions, frontend.sessions_total, frontend.denied) == (3, 12, 1)
    assert (server.kind, server.server, server.status, server.weight) == (
        Kind.SERVER,
        "web1",
        "UP",
        7,
    )
    assert server.responses == (0, 1, 2, 3, 4)
    assert (server.errors_connect, server.retries, server.redispatches) == (3, 5, 6)
    assert backend.kind is Kind.BACKEND


def test_server_states() -> None:
    assert answers.server_states(STATES) == [
        ServerState("DB", "web1", "10.77.0.21", 1521, True, False, False, 1, ""),
        ServerState("DB", "web2", "10.77.0.22", 0, False, True, False, 3, ""),
        ServerState("DB", "named", "", 1521, False, False, False, 1, "db.example.org", True),
    ]


def test_table() -> None:
    assert answers.table(TABLE) == [
        TableEntry("10.77.0.150", 599968, {"server_id": "1", "server_key": "web1"}),
        TableEntry("a b", 0, {"conn_cnt": "3"}),
    ]
    assert answers.tables(TABLE) == [("DB", "ip", 2)]


def test_processes() -> None:
    found = answers.processes(PROCESSES)
    assert (found.master, found.reloads, found.failed) == (440, 2, 1)
    assert found.current == (Worker(475, 93784, 1),)
    assert found.old == (Worker(460, 60, 2),)


@pytest.mark.parametrize(("flags", "done"), [("0x0", False), ("0x11", False), ("0x3", True)])
def test_peers(flags: str, done: bool) -> None:
    assert answers.peers_finished(PEERS.format(flags=flags)) is done


@pytest.mark.parametrize("read", [
    answers.statistics, answers.server_states, answers.table, answers.processes,
    answers.information,
])  # fmt: skip
@pytest.mark.parametrize("answer", ["", "\n", "Unknown command: `show`\n", "2\n# other\n1 2 3\n"])
def test_what_is_not_understood(read: object, answer: str) -> None:
    assert callable(read)
    with pytest.raises(ProxyError, match="is not understood"):
        read(answer)


def test_a_short_line() -> None:
    with pytest.raises(ProxyError, match="is not understood: 4 DB"):
        answers.server_states("1\n# be_id x\n4 DB 1 web1\n")
    with pytest.raises(ProxyError, match="is not understood: broken"):
        answers.table("# table: DB, type: ip\nbroken\n")
