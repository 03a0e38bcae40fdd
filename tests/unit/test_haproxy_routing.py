"""Reading association requests, and explaining where they go."""

from __future__ import annotations

import random
import re
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdr.haproxy.association import (
    ANSWERS,
    APPLICATION_CONTEXT,
    Association,
    RefusedError,
    build,
    parse,
)
from lbdr.haproxy.render.dicom import MAX_REQUEST
from lbdr.haproxy.routing import route
from tests import haproxy_samples as samples
from tests.dicom_requests import CT, ENHANCED_CT, LEGAL, associations, mutated

CONFIGURATION = samples.everything(Path("/etc/lbdr"))
SERVICE = next(one for one in CONFIGURATION.services if one.name == "DICOM_VIP")


@given(associations, st.integers(1, 20))
def test_what_is_built_reads_back(association: Association, transfer_syntaxes: int) -> None:
    assert parse(build(association, transfer_syntaxes=transfer_syntaxes)) == association


@given(st.binary(max_size=300))
def test_anything_else_is_refused_with_a_known_reason(data: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        parse(b"\1\0\0\0\0\xff" + data if len(data) > 200 else data)
    assert caught.value.reason in {*ANSWERS, "empty"}


def test_mutations_raise_nothing_else() -> None:
    chance = random.Random(7)  # noqa: S311  # the same every time
    reasons = set()
    for _ in range(5000):
        try:
            parse(mutated(chance))
        except RefusedError as refused:
            reasons.add(refused.reason)
    assert {"malformed", "truncated", "trailing", "oversized", "version", "context"} <= reasons


@pytest.mark.parametrize(
    ("called", "calling", "classes", "client", "outcome"),
    [
        ("PACS_STAT", "CT_ER", (CT,), "10.1.2.3", ("STAT", ("reserved",), "", 1, -100)),
        ("PACS", "CT_ER", (CT,), "10.1.2.3", ("DICOM_VIP", ("pacs1", "pacs2"), "", 2, 0)),
        ("PACS", "CT_ER", (ENHANCED_CT, CT), "10.2.2.3", ("", (), "rule", 4, 0)),
        ("PACS", "OLD CT", (ENHANCED_CT,), "10.1.2.3", ("DICOM_VIP", ("pacs2",), "", 3, 0)),
        ("PACS", "CT_ER", ("1.2.3",), "10.1.2.3", ("DICOM_VIP", ("pacs1", "pacs2"), "", 0, 0)),
        ("ARCHIVE", "CT_ER", (CT,), "10.1.2.3", ("", (), "called-ae", 0, 0)),
        ("PACS", "NOBODY", (CT,), "10.1.2.3", ("", (), "calling-ae", 0, 0)),
    ],
)
def test_route(
    called: str,
    calling: str,
    classes: tuple[str, ...],
    client: str,
    outcome: tuple[str, tuple[str, ...], str, int, int],
) -> None:
    association = Association(called, calling, classes)
    found = route(association, ip_address(client), SERVICE, CONFIGURATION)
    assert (found.pool, found.servers, found.refusal, found.rule, found.priority) == outcome


def test_why() -> None:
    association = Association("PACS", "CT_ER", (CT,))
    found = route(association, ip_address("10.1.2.3"), SERVICE, CONFIGURATION)
    assert found.why == "rule 2: source 10.1.0.0/16, modality CT or MR"
    down = {"DICOM_VIP": frozenset({"pacs1", "pacs2"})}
    found = route(association, ip_address("10.1.2.3"), SERVICE, CONFIGURATION, down)
    assert found.refusal == "no-server"
    assert found.why.endswith("; no real server of DICOM_VIP serves")
    assert parse(LEGAL).calling_ae == "CT_ER"


def test_the_program_has_the_same_limits() -> None:
    """As this reading: its answers are compared over a live HAProxy."""
    program = (samples.LUA / "dicom.lua").read_text()
    assert f"local MAX_REQUEST = {MAX_REQUEST} " in program
    assert f'local APPLICATION_CONTEXT = "{APPLICATION_CONTEXT}"' in program
    assert set(re.findall(r'\["([a-z-]+)"\] = {', program)) == set(ANSWERS)
