"""From the schema to the model: names resolved, defaults filled in."""

from __future__ import annotations

from lbdr import model
from lbdr.config import schema


def configuration(document: schema.Document) -> model.Configuration:
    """The model of a document.

    Args:
        document: one in which `rules` found nothing wrong.
    """
    named = {
        service.address: service.interface
        for service in document.virtual_services.values()
        if service.interface is not None
    }
    return model.Configuration(
        director=_director(document.director),
        virtual_services=tuple(
            _service(name, service, document, named.get(service.address))
            for name, service in document.virtual_services.items()
        ),
    )


def _director(written: schema.Director) -> model.Director:
    probe, arp, timeouts = written.address_probe, written.gratuitous_arp, written.timeouts
    values = model.Timeouts(timeouts.tcp or 0, timeouts.tcp_fin or 0, timeouts.udp or 0)
    return model.Director(
        name=written.name,
        role=model.Role(written.role),
        address_probe=model.AddressProbe(probe.count, probe.interval),
        gratuitous_arp=model.GratuitousArp(arp.repeat, arp.delay, arp.refresh, arp.refresh_repeat),
        timeouts=None if values == model.Timeouts() else values,
        drift_check=written.drift_check,
        fastpath=model.FastPathUse(written.fastpath),
        marks=written.marks,
        drain_persistence=model.DrainPersistence(written.drain_persistence),
    )


def _service(
    name: str, written: schema.VirtualService, document: schema.Document, interface: str | None
) -> model.VirtualService:
    ranges = sorted(written.ports, key=lambda ports: ports.first)
    ports = model.Ports(tuple(ranges))
    port = ports.single or 0
    persistence = written.persistence
    sorry = written.sorry_server
    return model.VirtualService(
        name=name,
        address=written.address,
        protocol=model.Protocol(written.protocol),
        ports=ports,
        forwarding=model.Forwarding(written.forwarding),
        scheduler=written.scheduler,
        scheduler_flags=frozenset(written.scheduler_flags),
        persistence=None
        if persistence is None
        else model.Persistence(
            persistence.timeout, persistence.granularity or written.address.max_prefixlen
        ),
        one_packet=written.one_packet,
        fastpath=model.FastPathUse(written.fastpath),
        interface=interface,
        real_servers=tuple(
            model.RealServer(
                address=document.real_servers[use.server].address,
                port=port,
                weight=use.weight,
                upper_threshold=use.upper_threshold,
                lower_threshold=use.lower_threshold,
                name=use.server,
            )
            for use in written.real_servers
        ),
        sorry_server=None
        if sorry is None
        else model.RealServer(
            address=document.real_servers[sorry.server].address, port=port, name=sorry.server
        ),
    )
