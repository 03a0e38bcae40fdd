"""What the tests in network namespaces share: a lab of hosts on one bridge."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from netlab import Lab

from tests.fastpath import World, load_world
from tests.guest import missing


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Hosts client, director, web1 and web2, fresh for each test."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("network namespaces need root")
        pytest.skip("network namespaces need root")
    with Lab() as built:
        yield built


@pytest.fixture(scope="session")
def loaded_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The director's programs, loaded once for all tests."""
    if os.geteuid() != 0:
        missing("BPF needs root")
    loaded = load_world(tmp_path_factory.mktemp("bpffs"))
    with loaded.programs:
        yield loaded


@pytest.fixture
def world(loaded_world: World) -> Iterator[World]:
    """The director's programs with empty maps."""
    yield loaded_world
    loaded_world.clear()
