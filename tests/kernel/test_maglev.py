"""lbdr's mh table against the running kernel's IPVS: the same server for every client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from netlab import Lab

from tests.mh_equality import FLAGS, VERSIONS, Case, ask, differences, mh_lab

CLIENTS = 1000
SEEDS = range(3)  # 12,000 clients in all


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with mh_lab() as built:
        yield built


@pytest.mark.parametrize("flags", FLAGS, ids=["address", "port"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_client_goes_where_the_table_says(
    lab: Lab, seed: int, version: int, flags: frozenset[str]
) -> None:
    """Random servers, weights and clients; a drained server in every second case."""
    asked = ask(lab, Case(seed, version, flags, CLIENTS))
    assert len(asked.clients) == CLIENTS
    assert not differences(lab, [asked])
