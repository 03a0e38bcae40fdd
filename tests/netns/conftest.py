"""What the tests in network namespaces share: a lab of hosts on one bridge."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from netlab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Hosts client, director, web1 and web2, fresh for each test."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("network namespaces need root")
        pytest.skip("network namespaces need root")
    with Lab() as built:
        yield built
