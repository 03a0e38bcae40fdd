"""Real peers for checks on loopback: haproxy, dcmtk, slapd, dnsmasq, aiosmtpd, and stand-ins."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from netlab import wait_for

from lbdr.health.spec import Target
from tests.guest import missing

HOST = "127.0.0.1"
_STREAM = socket.SOCK_STREAM
_ports = iter(range(20000 + os.getpid() % 100 * 100, 32768))
STAND_INS = Path(__file__).with_name("health_stand_ins.py")


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: an authority, a server's certificate, one that has expired, a client's."""

    authority: Path
    server: Path
    expired: Path
    client: Path

    def key(self, certificate: Path) -> Path:
        """The key of a certificate."""
        return certificate.with_suffix(".key")

    def bundle(self, certificate: Path) -> Path:
        """A certificate and its key in one file, as haproxy wants them."""
        return certificate.with_suffix(".bundle")


def tool(name: str) -> str:
    """The path of a program; without it the test is skipped, and fails in CI."""
    found = shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin") or ""
    if not found:
        missing(f"{name} is not installed")
    return found


def make_certificates(directory: Path) -> Certificates:
    """An authority of its own, and certificates for HOST."""
    certificates = Certificates(
        *(directory / f"{name}.pem" for name in ("authority", "server", "expired", "client"))
    )
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    key_file = certificates.key(certificates.authority)
    openssl(
        *["req", "-x509", *key, "-keyout", str(key_file), "-days", "30"],
        *["-out", str(certificates.authority), "-subj", "/CN=test authority"],
    )
    names = directory / "names"
    names.write_text(f"subjectAltName=IP:{HOST},DNS:pacs.test\n")
    for path, days in (
        (certificates.server, "30"),
        (certificates.expired, "-1"),
        (certificates.client, "30"),
    ):
        request = path.with_suffix(".csr")
        openssl(
            *["req", *key, "-keyout", str(certificates.key(path)), "-out", str(request)],
            *["-subj", f"/CN={path.stem}"],
        )
        openssl(
            *["x509", "-req", "-in", str(request), "-out", str(path), "-days", days],
            *["-CA", str(certificates.authority), "-CAkey", str(key_file), "-CAcreateserial"],
            *["-extfile", str(names)],
        )
        bundle = path.read_text() + certificates.key(path).read_text()
        certificates.bundle(path).write_text(bundle)
    return certificates


def openssl(*arguments: str) -> None:
    """Run openssl."""
    subprocess.run([tool("openssl"), *arguments], check=True, capture_output=True)


def free_port() -> int:
    """A port that nobody uses, below those that connections get of their own."""
    for port in _ports:
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            try:
                stream.bind((HOST, port))
                datagrams.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")


class Peers:
    """Processes that are ended together.

    Args:
        directory: for their files.
        certificates: of those that speak TLS.
    """

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        self.directory = directory
        self.certificates = certificates
        self._processes: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        """End them all."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def freeze(self) -> None:
        """Stop them all, and their children: connections are still accepted by the kernel."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGSTOP)
        groups = {process.pid for process in self._processes}
        wait_for(lambda: not _running(groups), "all peers are stopped", timeout=20)

    def thaw(self) -> None:
        """Let them go on."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGCONT)

    def start(
        self, command: Sequence[str | Path], port: int, kind: socket.SocketKind = _STREAM
    ) -> Target:
        """Start a process, and wait until its port is taken."""
        log = self.directory / f"{Path(command[0]).name}-{port}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                cwd=self.directory,
                env=os.environ | {"DCMDICTPATH": "/usr/share/libdcmtk17/dicom.dic"},
            )
        self._processes.append(process)

        def listens() -> bool:
            assert process.poll() is None, log.read_text()
            if kind is _STREAM:
                with socket.socket() as probe:
                    return probe.connect_ex((HOST, port)) == 0
            with socket.socket(type=kind) as probe:
                try:
                    probe.bind((HOST, port))
                except OSError:
                    return True
            return False

        wait_for(listens, f"{command[0]} listens", timeout=20)
        return Target(ip_address(HOST), port)

    # --- the peers --------------------------------------------------------------------------

    def haproxy(self) -> dict[str, Target]:
        """Plain HTTP, HTTPS, HTTPS with an expired certificate, and HTTPS for known clients."""
        of, ports = self.certificates, {name: free_port() for name in HAPROXY}
        client = f"verify required ca-file {of.authority}"
        binds = {
            "http": "",
            "https": f"ssl crt {of.bundle(of.server)}",
            "https-expired": f"ssl crt {of.bundle(of.expired)}",
            "https-client": f"ssl crt {of.bundle(of.server)} {client}",
        }
        lines = ["defaults", " mode http", " timeout client 5s", " timeout http-request 5s"]
        text = "content-type text/plain"
        words = '"host %[req.hdr(host)] sni %[ssl_fc_sni] healthy"'
        for name, options in binds.items():
            lines += [
                f"frontend {name}",
                f" bind {HOST}:{ports[name]} {options}",
                f" http-request return status 503 {text} string broken if {{ path /broken }}",
                " http-request redirect location /login code 302 if { path /portal }",
                f" http-request return status 200 {text} lf-string {words}",
            ]
        file = self.directory / "haproxy.cfg"
        file.write_text("\n".join(lines) + "\n")
        first = self.start([tool("haproxy"), "-db", "-f", file], ports["http"])
        return {name: Target(first.address, port) for name, port in ports.items()}

    def storescp(self, *options: str | Path) -> Target:
        """A DICOM storage SCP, which answers C-ECHO to any AE."""
        port = free_port()
        return self.start([tool("storescp"), *options, "--ignore", str(port)], port)

    def storescp_tls(self, certificate: Path) -> Target:
        """The same by TLS."""
        key = self.certificates.key(certificate)
        return self.storescp("+tls", key, certificate, "--ignore-peer-cert")

    def dcmqrscp(self) -> Target:
        """A DICOM archive that knows its own name, PACS, and whom it serves."""
        port, store = free_port(), self.directory / "store"
        store.mkdir()
        file = self.directory / "dcmqrscp.cfg"
        file.write_text(
            f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
            f"HostTable BEGIN\nlbdr = (LBDR, {HOST}, 11112)\nHostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\nPACS {store} RW (9, 1024mb) ANY\nAETable END\n"
        )
        return self.start([tool("dcmqrscp"), "-c", file, str(port)], port)

    def slapd(self, certificate: Path) -> dict[str, Target]:
        """A directory by LDAP, with StartTLS, and by LDAPS."""
        plain, tls = free_port(), free_port()
        place = self.directory / f"slapd-{plain}"
        place.mkdir()
        file = place / "slapd.conf"
        file.write_text(
            "include /etc/ldap/schema/core.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n"
            f"TLSCertificateFile {certificate}\n"
            f"TLSCertificateKeyFile {self.certificates.key(certificate)}\n"
            f"TLSCACertificateFile {self.certificates.authority}\n"
            f'database mdb\nsuffix "dc=test"\nrootdn "cn=admin,dc=test"\nrootpw secret\n'
            f"directory {place}\n"
        )
        urls = f"ldap://{HOST}:{plain} ldaps://{HOST}:{tls}"
        target = self.start([tool("slapd"), "-d", "stats", "-f", file, "-h", urls], plain)
        return {"ldap": target, "ldaps": Target(target.address, tls)}

    def dnsmasq(self) -> Target:
        """A resolver that knows pacs.test."""
        port = free_port()
        options = ["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"]
        options += [f"--port={port}", f"--listen-address={HOST}", "--bind-interfaces"]
        options += ["--address=/pacs.test/192.0.2.7", "--address=/pacs.test/2001:db8::7", "--user="]
        return self.start([tool("dnsmasq"), *options], port)

    def aiosmtpd(self, certificate: Path) -> Target:
        """A mail server with STARTTLS."""
        port = free_port()
        key = self.certificates.key(certificate)
        command = ["/usr/bin/python3", "-m", "aiosmtpd", "-n", "-l", f"{HOST}:{port}"]
        command += ["--tlscert", str(certificate), "--tlskey", str(key), "--no-requiretls"]
        return self.start(command, port)

    def stand_in(self, kind: str) -> Target:
        """One of health_stand_ins."""
        port = free_port()
        by = socket.SOCK_DGRAM if kind.endswith("datagrams") else _STREAM
        return self.start([sys.executable, STAND_INS, kind, str(port)], port, by)

    def dripping(self, targets: Iterable[Target]) -> dict[Target, Target]:
        """For each peer one that passes on its answers by a byte a second."""
        made = {target: replace(target, port=free_port()) for target in targets}
        pairs = [f"{drip.port}={target.port}" for target, drip in made.items()]
        last = next(reversed(made.values())).port
        self.start([sys.executable, STAND_INS, "drip", *pairs], last)
        return made


def _running(groups: set[int]) -> set[int]:
    """The threads of process groups that are not stopped (proc(5): state, ppid, pgrp)."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
            if int(group) in groups and state not in "TZX":
                found.add(int(path.parent.name))
    return found


HAPROXY = ("http", "https", "https-expired", "https-client")


@contextlib.contextmanager
def peers(directory: Path) -> Iterator[Peers]:
    """Peers, all ended at the end."""
    made = Peers(directory, make_certificates(directory))
    try:
        yield made
    finally:
        made.close()
