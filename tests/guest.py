"""A pytest plugin: tests under tests/kernel run inside user-mode-linux, the others here.

The host collects everything. It starts one guest with one pytest for all selected guest tests at
the beginning of its run, goes through its own tests meanwhile, and then logs the guest's reports as
they come, so that there is one summary, and node ids, `-k`, `-x` and `--durations` mean what they
always do. Inside the guest (LBDR_GUEST=1) the tests run directly, and each report is written as a
line of JSON to $RESULTS.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

PROJECT = Path(__file__).parent.parent
UML = PROJECT / "scripts" / "uml"
QEMU = PROJECT / "scripts" / "qemu"
LOG = PROJECT / ".cache" / "guest.log"
INSIDE = os.environ.get("LBDR_GUEST") == "1"
NO_GUEST = pytest.StashKey[str]()
REPORTS = "reports.jsonl"
GUEST_SECONDS = 1200
"""The guest's whole life; a quiet machine takes a third of it."""
SILENT_SECONDS = 120
"""A guest that reports nothing for so long hangs."""


def missing(reason: str) -> None:
    """Skip the running test for want of a prerequisite; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def cannot_run(runner: Path) -> str:
    """Say why a runner of guests has no kernel to run here; nothing if it has."""
    fetch = subprocess.run([runner, "--fetch"], stderr=subprocess.PIPE, text=True, check=False)
    return f"cannot run a guest: {fetch.stderr.strip()}" if fetch.returncode else ""


def cannot_log() -> str:
    """Say why the guest's log cannot be written; nothing if it can."""
    writable = os.access(LOG if LOG.exists() else LOG.parent, os.W_OK)
    return "" if writable else f"cannot write to {LOG}, which another user made: run it with sudo"


@pytest.fixture
def debian_kernel() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run commands on Debian's own kernel, which is slow: one boot a call, and 20 times the CPU."""
    if reason := cannot_run(QEMU):
        missing(reason)

    def run(*command: str, seconds: int = 240) -> subprocess.CompletedProcess[str]:
        arguments = [str(QEMU), f"--timeout={seconds}", "--", *command]
        return subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=PROJECT)

    return run


def in_directory(item: pytest.Item, name: str) -> bool:
    """Tell whether a test lies in tests/<name>."""
    return item.path.is_relative_to(PROJECT / "tests" / name)


def is_guest_test(item: pytest.Item) -> bool:
    """Tell whether a test is to run in the guest and we are not there."""
    return not INSIDE and in_directory(item, "kernel")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and write reports when this is the guest's pytest."""
    config.addinivalue_line("markers", "root: needs root (all of tests/netns does)")
    if INSIDE and "RESULTS" in os.environ:
        config.pluginmanager.register(Reporter(config, Path(os.environ["RESULTS"])))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold back a test whose prerequisite is missing."""
    if is_guest_test(item):  # had there been a guest, this hook would not be called
        missing(item.config.stash[NO_GUEST])
    if (item.get_closest_marker("root") or in_directory(item, "netns")) and os.geteuid() != 0:
        missing("needs root: run it with sudo")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the guest's tests last: it boots and runs while the host is busy with its own."""
    items.sort(key=is_guest_test)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """Keep a guest for the selected guest tests, if there are any, as long as tests run."""
    selected = [item.nodeid for item in session.items if is_guest_test(item)]
    if not selected or session.config.option.collectonly:
        return (yield)
    if reason := cannot_run(UML) or cannot_log():
        session.config.stash[NO_GUEST] = reason
        return (yield)
    guest = Guest(session.config, selected)
    session.config.pluginmanager.register(guest)
    try:
        result = yield
        guest.finish(session)
        return result
    finally:
        guest.stop()


class Reporter:
    """The guest's side: each report as one line of JSON, on the host's disk at once."""

    def __init__(self, config: pytest.Config, directory: Path) -> None:
        self.config = config
        self.lines = (directory / REPORTS).open("w")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a report; fsync makes it visible to the host."""
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.lines.write(json.dumps(data) + "\n")
        self.lines.flush()
        os.fsync(self.lines.fileno())

    def pytest_unconfigure(self) -> None:
        """Close the file: pytest itself complains of files left open."""
        self.lines.close()


class Guest:
    """The host's side: one guest, and the reports that come from it."""

    def __init__(self, config: pytest.Config, selected: list[str]) -> None:
        """Boot it in the background, with a pytest for the selected node ids."""
        self.config = config
        self.results = Path(tempfile.mkdtemp(prefix="lbdr-results-"))
        self.reports: dict[str, list[pytest.TestReport]] = {}
        self.stream: IO[str] | None = None
        self.partial = ""
        self.heard = time.monotonic()
        self.end = ""  # why there will be no more reports, once that is so
        command = [str(UML), f"--timeout={GUEST_SECONDS}", f"--results={self.results}"]
        passed_on = [name for name in ("CI", "PYTHONPATH") if name in os.environ]
        command += [f"--env={name}={os.environ[name]}" for name in passed_on]
        command += ["--", sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no"]
        command += [f"--tb={config.option.tbstyle}", *["--showlocals"] * config.option.showlocals]
        with LOG.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *selected],
                cwd=config.rootpath,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def finish(self, session: pytest.Session) -> None:
        """Wait for the end of the guest's pytest; what went wrong after its last test counts."""
        code = self.process.wait(SILENT_SECONDS)
        if code > 1 or (code and not session.testsfailed):
            raise session.Failed(f"the guest's pytest ended with exit status {code}: {LOG}")

    def stop(self) -> None:
        """End the guest, if it has not ended by itself, and remove its results."""
        self.process.terminate()
        self.process.wait()
        if self.stream:
            self.stream.close()
        shutil.rmtree(self.results)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Log what the guest reports of a test, as if the test had run here."""
        if not is_guest_test(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.reports_of(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def reports_of(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """Yield a test's reports as they come, and one of failure if the guest ends before."""
        while True:
            over = self.process.poll() is not None  # asked before reading, so nothing is missed
            self.read()
            for report in self.reports.pop(item.nodeid, []):
                yield report
                if report.when == "teardown":
                    return
            if over:
                yield self.failure(item)
                return
            if time.monotonic() - self.heard > SILENT_SECONDS:
                self.end = f"the guest reported nothing for {SILENT_SECONDS} s and was stopped"
                self.process.terminate()
                self.process.wait()
            time.sleep(0.05)

    def read(self) -> None:
        """Take in the reports that have come since the last time."""
        if self.stream is None:
            if not (self.results / REPORTS).exists():
                return
            self.stream = (self.results / REPORTS).open()
        *lines, self.partial = (self.partial + self.stream.read()).split("\n")
        for line in lines:
            self.heard = time.monotonic()
            report = self.config.hook.pytest_report_from_serializable(
                config=self.config, data=json.loads(line)
            )
            if isinstance(report.longrepr, list):  # a skip's place and reason: JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            self.reports.setdefault(report.nodeid, []).append(report)

    def failure(self, item: pytest.Item) -> pytest.TestReport:
        """Make the report of a test that the guest did not run to its end."""
        self.end = self.end or f"the guest ended with exit status {self.process.returncode}"
        tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-60:])
        keywords: dict[str, Any] = dict.fromkeys(item.keywords, 1)
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=keywords,
            outcome="failed",
            longrepr=f"{self.end}, before this test had. The end of {LOG}:\n\n{tail}",
            when="call",
        )
