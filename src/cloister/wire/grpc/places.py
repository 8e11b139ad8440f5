"""The machines that workers' addresses lead to, however the addresses are written.

This module cannot prove that two workers belong to two parties. It finds workers that cannot:
addresses of one machine, in any spelling. It does not find a party with two machines, or a port of
one machine that leads to the other.
"""

import ipaddress
import socket

from cloister.errors import InputError

HERE = "this machine"
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT, where HOST may be a bracketed IPv6 address.

    Raises   InputError
    """
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise InputError(f"address {address!r}: expected HOST:PORT, such as 127.0.0.1:7700")
    return host, int(port)


def endpoints(address: str) -> frozenset[tuple[str, int]]:
    """The machines, and the port on them, that an address may lead to: IP addresses, or HERE.

    Raises   InputError when it leads nowhere, and so cannot be compared with another
    """
    host, port = check_address(address)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise InputError(
            f"worker {address}: the name does not resolve, so it cannot be compared with the other "
            "workers; give its IP address"
        ) from None
    return frozenset((_machine(str(place[4][0]), place[4][3:]), port) for place in found)


def machines(address: str | None) -> frozenset[str]:
    """The machines that a link's address may lead to; None is this one.

    Raises   InputError, see `endpoints`
    """
    if address is None:
        return frozenset({HERE})
    return frozenset(machine for machine, _ in endpoints(address))


def _machine(text: str, scope: tuple[int | str, ...]) -> str:
    ip: _Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip, scope = ip.ipv4_mapped, ()
    if ip.is_loopback or ip.is_unspecified or _is_own(ip, scope):
        return HERE
    return str(ip)


def _is_own(ip: _Address, scope: tuple[int | str, ...]) -> bool:
    """Whether an interface of this machine has the address: only then can it be bound."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0, 0, *scope) if scope else (str(ip), 0))
    except OSError:
        return False
    return True
