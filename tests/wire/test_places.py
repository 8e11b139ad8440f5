"""Addresses that lead to one machine, however they are written."""

import fcntl
import socket
import struct

import pytest

from cloister.errors import InputError
from cloister.wire.grpc.places import HERE, endpoints, machines

OWN = (
    "127.0.0.1", "localhost", "127.0.0.2", "127.255.1.9", "127.1", "2130706433", "0x7f000001",
    "0.0.0.0", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:2]", "[::ffff:0.0.0.0]",
)  # fmt: skip
SIOCGIFADDR = 0x8915


@pytest.fixture
def names(monkeypatch):
    """A resolver of names that only this test knows; addresses are resolved as ever."""
    known, real = {}, socket.getaddrinfo

    def resolve(host, port, **options):
        if host not in known:
            return real(host, port, flags=socket.AI_NUMERICHOST, **options)
        return [place for ip in known[host] for place in real(ip, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def own_addresses():
    """IPv4 addresses of this machine's interfaces."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                asked = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue
            found.append(socket.inet_ntoa(asked[20:24]))
    return found


@pytest.mark.parametrize("host", OWN)
def test_every_spelling_of_this_machine_is_this_machine(host):
    assert machines(f"{host}:7000") == {HERE}
    assert endpoints(f"{host}:7000") == {(HERE, 7000)}


def test_addresses_of_own_interfaces_are_this_machine():
    addresses = own_addresses()
    assert "127.0.0.1" in addresses
    assert {machines(f"{address}:1") for address in addresses} == {frozenset({HERE})}


def test_a_link_without_an_address_is_on_this_machine():
    assert machines(None) == {HERE}


def test_other_machines_are_told_apart():
    assert machines("203.0.113.1:7000") == {"203.0.113.1"} == machines("203.0.113.1:7001")
    assert machines("[2001:db8::1]:1") == {"2001:db8::1"} == machines("[2001:DB8:0:0::1]:1")
    assert machines("[::ffff:203.0.113.1]:1") == {"203.0.113.1"}
    assert endpoints("203.0.113.1:7000") != endpoints("203.0.113.1:7001")


def test_a_name_is_every_machine_that_it_resolves_to(names):
    names["gpu.example"] = ("203.0.113.1", "203.0.113.2")
    names["mine.example"] = ("127.0.0.1",)
    assert machines("gpu.example:1") == {"203.0.113.1", "203.0.113.2"}
    assert machines("mine.example:1") == {HERE}


@pytest.mark.parametrize("host", ["nowhere.invalid", "ipv4:127.0.0.1", "unix:/tmp/x", "a" * 300])
def test_a_name_that_does_not_resolve_is_refused(names, host):
    with pytest.raises(InputError, match="does not resolve"):
        machines(f"{host}:7000")
