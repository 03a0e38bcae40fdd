"""The services of a PACS with real peers: dcmtk, HL7 senders, database clients."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from netlab import Lab, wait_for

from lbdr.haproxy.model import (
    Pool,
    ProxyConfiguration,
    ProxyPersistence,
    ProxyProtocol,
    ProxyServer,
    ProxyService,
    ProxySettings,
    Scheduler,
    Source,
)
from lbdr.haproxy.runtime import AdminState
from tests.guest import missing
from tests.haproxy_samples import need_haproxy, ports
from tests.proxies import Director, Peer, ask_name, connect, first_line, says_its_name

DICOM = 2104
OBJECTS = 500
ASSOCIATIONS = 50
MESSAGE = b"\x0bMSH|^~\\&|RIS|A|PACS|B|20260101||ADT^A01|1|P|2.3\r\x1c\x0d"


@pytest.fixture
def director(lab: Lab, tmp_path: Path) -> Iterator[Director]:
    need_haproxy()
    with Director(lab, tmp_path / "haproxy") as found:
        yield found


def pool(lab: Lab, port: int | None, **more: object) -> Pool:
    servers = tuple(ProxyServer(name, lab[name].ipv4, port) for name in ("web1", "web2"))
    return Pool(servers, **more)  # type: ignore[arg-type]


def serve(director: Director, *services: ProxyService) -> None:
    settings = ProxySettings(max_connections=2000, threads=2)
    director.apply(ProxyConfiguration(settings, services))


def store(lab: Lab, *files: Path, calling: str = "CT_ER") -> subprocess.CompletedProcess[str]:
    """Send objects with dcmtk, on one association."""
    vip = str(lab["director"].ipv4)
    titles = ("-aet", calling, "-aec", "PACS")
    command = ["storescu", *titles, vip, str(DICOM), *map(str, files)]
    return lab.run("client", command, check=False, timeout=40)


@pytest.fixture
def study(tmp_path: Path) -> list[Path]:
    """CT slices of a size of their own each."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid  # noqa: PLC0415

    folder = tmp_path / "study"
    folder.mkdir()
    found = []
    for number in range(OBJECTS):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = pydicom.Dataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.PatientID, data.PatientName = "1", "Test"
        data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        data.Modality = "CT"
        rows = 16 + number
        data.Rows, data.Columns, data.SamplesPerPixel = rows, 128, 1
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.PhotometricInterpretation = "MONOCHROME2"
        data.PixelData = bytes((number % 256, number // 256)) * rows * 128
        path = folder / f"{number}.dcm"
        data.save_as(path, enforce_file_format=True)
        found.append(path)
    return found


@contextlib.contextmanager
def archive(lab: Lab, host: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A storescp of dcmtk's, which writes what it gets as it came."""
    folder.mkdir()
    command = ["storescp", "-aet", "PACS", "--bit-preserving", "--fork", "-od", str(folder)]
    process = lab.popen(
        host, [*command, str(DICOM)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: answers(lab, host), f"storescp on {host}", timeout=20)
        yield process
    finally:
        lab.stop(process)


def answers(lab: Lab, host: str) -> bool:
    with lab.entered(host), contextlib.suppress(OSError):
        socket.create_connection((str(lab[host].ipv4), DICOM), 1).close()
        return True
    return False


def content(path: Path) -> str:
    """What is in an object, whatever its writer says of itself in the file's header.

    Empty for one that was cut off with its writer.
    """
    pydicom = pytest.importorskip("pydicom")
    with contextlib.suppress(Exception):
        data = pydicom.dcmread(path)
        return f"{data.SOPInstanceUID} {hashlib.sha256(data.to_json().encode()).hexdigest()}"
    return ""


def dicom_service(lab: Lab, **more: object) -> ProxyService:
    return ProxyService(
        "DICOM_VIP",
        (lab["director"].ipv4,),
        ports(DICOM),
        pool(lab, DICOM, scheduler=Scheduler.RR, **more),
        ProxyProtocol.DICOM,
    )


def set_state(director: Director, server: str, state: AdminState) -> None:
    director.run(lambda companion: companion.runtime.set_state("DICOM_VIP", server, state))


def need_dcmtk() -> None:
    if shutil.which("storescp") is None:
        missing("dcmtk is not installed")


def test_a_study_while_everything_changes(
    lab: Lab, director: Director, study: list[Path], tmp_path: Path
) -> None:
    """Servers drain, one is killed, HAProxy is reloaded ten times.

    Every association that was not on the killed server completes, and when the others are sent
    again, every object is at a server, byte by byte what was sent.
    """
    need_dcmtk()
    waiting: queue.Queue[list[Path]] = queue.Queue()
    for number in range(ASSOCIATIONS):
        waiting.put(study[number::ASSOCIATIONS])
    failed: list[list[Path]] = []

    def modality() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                part = waiting.get_nowait()
                if store(lab, *part).returncode:
                    failed.append(part)

    with archive(lab, "web1", tmp_path / "a"), archive(lab, "web2", tmp_path / "b") as second:
        serve(director, dicom_service(lab))
        modalities = [threading.Thread(target=modality) for _ in range(5)]
        for one in modalities:
            one.start()
        for number in range(8):
            name = "web1" if number % 2 else "web2"
            set_state(director, name, AdminState.MAINTENANCE)
            director.reload()
            set_state(director, name, AdminState.READY)
        assert failed == []
        assert not waiting.empty(), "there is a study on its way"
        os.killpg(second.pid, signal.SIGKILL)
        set_state(director, "web2", AdminState.MAINTENANCE)
        for _ in range(2):
            director.reload()
        for one in modalities:
            one.join(120)
        assert len(failed) <= len(modalities), "no more than were on their way to it"
        for part in failed:
            assert store(lab, *part).returncode == 0
        stored = {content(path) for name in "ab" for path in (tmp_path / name).glob("CT.*")}
        assert {content(path) for path in study} <= stored
        assert all(list((tmp_path / name).iterdir()) for name in "ab"), "both took some"


def test_a_killed_server(lab: Lab, director: Director, study: list[Path], tmp_path: Path) -> None:
    """Its associations break, others go on, and who calls again reaches the other one."""
    need_dcmtk()
    with archive(lab, "web1", tmp_path / "a") as first, archive(lab, "web2", tmp_path / "b"):
        serve(director, dicom_service(lab, persistence=ProxyPersistence()))
        assert store(lab, study[0]).returncode == 0
        (entry,) = director.run(lambda companion: companion.runtime.table("DICOM_VIP"))
        if entry.data["server_key"] == "web1":
            os.killpg(first.pid, signal.SIGKILL)
            first.wait(10)
        # Nothing told HAProxy: the connection is refused, and the other server tried at once.
        assert store(lab, study[1]).returncode == 0
        set_state(director, "web1", AdminState.MAINTENANCE)
        assert store(lab, study[2]).returncode == 0
        assert any((tmp_path / "b").iterdir())


def test_echo_and_a_refused_title(lab: Lab, director: Director, tmp_path: Path) -> None:
    need_dcmtk()
    vip = str(lab["director"].ipv4)
    with archive(lab, "web1", tmp_path / "a"), archive(lab, "web2", tmp_path / "b"):
        serve(director, replace(dicom_service(lab), called_aes=("PACS",)))
        good = lab.run("client", ["echoscu", "-v", "-aec", "PACS", vip, str(DICOM)], check=False)
        assert good.returncode == 0, good.stderr
        bad = lab.run("client", ["echoscu", "-v", "-aec", "OTHER", vip, str(DICOM)], check=False)
        assert bad.returncode != 0
        assert "Called AE Title Not Recognized" in bad.stderr + bad.stdout


def acknowledges(connection: socket.socket, _host: str) -> None:
    """An HL7 listener (MLLP): one acknowledgement for each message."""
    data = b""
    while part := connection.recv(4096):
        data += part
        while b"\x1c\x0d" in data:
            _, data = data.split(b"\x1c\x0d", 1)
            connection.sendall(b"\x0bMSA|AA|1\r\x1c\x0d")


def test_hl7_on_several_ports(lab: Lab, director: Director) -> None:
    """One decision for all ports; the connection stays open between messages."""
    numbers = (10010, 4001, 4003, 4005)
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(Peer(lab, host, port, acknowledges))
            for host in ("web1", "web2")
            for port in numbers
        ]
        vip = lab["director"].ipv4
        serve(
            director,
            ProxyService(
                "HL7_VIP", (vip,), ports(*numbers), pool(lab, None, persistence=ProxyPersistence())
            ),
        )
        for port in numbers:
            with connect(lab, "client", str(vip), port) as connection:
                for _ in range(3):
                    connection.sendall(MESSAGE)
                    assert b"MSA|AA|1" in connection.recv(100)
        taken = {peer.host for peer in peers if peer.clients}
        assert len(taken) == 1
        assert sorted(peer.port for peer in peers if peer.clients) == sorted(numbers)


def test_ports_are_translated(lab: Lab, director: Director) -> None:
    """80 becomes 8080, 8080 becomes 9090 and not the one after the other; 81 stays."""
    with (
        Peer(lab, "web1", 8080, says(b"8080")),
        Peer(lab, "web1", 9090, says(b"9090")),
        Peer(lab, "web1", 81, says(b"81")),
    ):
        vip = lab["director"].ipv4
        only = Pool((ProxyServer("web1", lab["web1"].ipv4),))
        translate = {80: 8080, 8080: 9090}
        serve(director, ProxyService("T", (vip,), ports(80, 81, 8080), only, translate=translate))
        heard = {port: ask_name(lab, str(vip), port) for port in (80, 81, 8080)}
        assert heard == {80: "8080", 81: "81", 8080: "9090"}


def says(word: bytes) -> Callable[[socket.socket, str], None]:
    return lambda connection, _host: connection.sendall(word + b"\n")


def tells_what_came(connection: socket.socket, _host: str) -> None:
    connection.sendall(connection.recv(200).hex().encode() + b"\n")


@pytest.mark.parametrize("version", [1, 2])
def test_proxy_protocol(lab: Lab, director: Director, version: int) -> None:
    """The server is told the client's address before anything else."""
    with Peer(lab, "web1", 1521, tells_what_came), Peer(lab, "web2", 1521, tells_what_came):
        vip, client = lab["director"].ipv4, lab["client"].ipv4
        source = Source(proxy_protocol=version)
        serve(director, ProxyService("DB", (vip,), ports(1521), pool(lab, 1521, source=source)))
        with connect(lab, "client", str(vip), 1521) as connection:
            heard = bytes.fromhex(first_line(connection))
    if version == 1:
        assert heard.startswith(f"PROXY TCP4 {client} {vip} ".encode())
    else:
        assert heard.startswith(b"\r\n\r\n\0\r\nQUIT\n\x21\x11")
        assert heard[16:20] == client.packed


def test_source_address_of_choice(lab: Lab, director: Director) -> None:
    lab.ip("director", "address add 10.77.0.77/24 dev eth0")
    with (
        Peer(lab, "web1", 1521, says_its_name) as one,
        Peer(lab, "web2", 1521, says_its_name) as two,
    ):
        vip = lab["director"].ipv4
        for source, expected in (
            (Source(), str(vip)),
            (Source(address=ip_address("10.77.0.77")), "10.77.0.77"),
        ):
            serve(director, ProxyService("DB", (vip,), ports(1521), pool(lab, 1521, source=source)))
            ask_name(lab, str(vip), 1521)
            assert (one.clients + two.clients)[-1:] == [expected]
            one.clients.clear()
            two.clients.clear()


def test_a_vip_that_is_elsewhere(lab: Lab, director: Director) -> None:
    """A standby is ready with the active director's VIPs, and serves once it has them."""
    with Peer(lab, "web1", 1521, says_its_name), Peer(lab, "web2", 1521, says_its_name):
        addresses = (ip_address("10.77.0.88"), ip_address("fd77::88"))
        kept = ProxyPersistence()
        serve(
            director, ProxyService("DB", addresses, ports(1521), pool(lab, 1521, persistence=kept))
        )
        lab.ip(
            "director",
            "address add 10.77.0.88/32 dev eth0",
            "address add fd77::88/128 dev eth0 nodad",
        )
        for address in addresses:
            assert ask_name(lab, str(address), 1521) in {"web1", "web2"}
        entries = director.run(lambda companion: companion.runtime.table("DB"))
        assert {entry.key for entry in entries} == {
            f"::ffff:{lab['client'].ipv4}",
            str(lab["client"].ipv6),
        }
