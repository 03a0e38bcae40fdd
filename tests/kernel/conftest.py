"""What the tests of IPVS share; all of them run in one guest, in which a process is expensive.

- `namespace`: the test is in a fresh network namespace with nothing but lo. 1 ms.
- `director`: a director in such a namespace, with an Ethernet interface on which nobody else
  answers: `directors.Director`. 0.3 s.
- `lab`: hosts client, director, web1 and web2 on a bridge, fresh for each test. 3 s: a file of
  tests does better with one of its own scope.
- `lab_director`: a director on the lab's host of that name; the test itself is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from netlab import Lab

from tests.directors import Director, add_ethernet, fresh_namespace, run


@pytest.fixture(scope="session", autouse=True)
def schedulers_with_namespaces() -> None:
    """Load two schedulers before any namespace is deleted, or Linux 6.1 can hang for good.

    An added service whose scheduler is not loaded waits for modprobe and keeps __ip_vs_mutex; the
    modules of these two wait for pernet_ops_rwsem, since they have something in every namespace;
    and cleanup_net, which has that, waits for the mutex (ip_vs_ctl.c, ip_vs_service_nets_cleanup).
    """
    run("modprobe", "--all", "ip_vs_lblc", "ip_vs_lblcr")


@pytest.fixture
def namespace() -> Iterator[None]:
    """The test, and every process that it starts, is in a fresh network namespace."""
    with fresh_namespace():
        yield


@pytest.fixture
def director(namespace: None, tmp_path: Path) -> Director:  # noqa: ARG001  # it is entered
    """A director in the test's own namespace, without a configuration yet."""
    add_ethernet()
    return Director(tmp_path / "lbdr")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Hosts client, director, web1 and web2, fresh for each test."""
    with Lab() as built:
        yield built


@pytest.fixture
def lab_director(lab: Lab, tmp_path: Path) -> Director:
    """A director on the lab's host director, without a configuration yet."""
    return Director(tmp_path / "lbdr", partial(lab.entered, "director"))
