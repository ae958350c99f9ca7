"""Which addresses a user's URL may lead to: public ones, and private ones that the platform allows.

The services that tell a machine its secrets are never asked, whatever is allowed: a link-local address, and those
addresses that the clouds use instead of one.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from kaito_hooks.api import metadata_services
from kaito_hooks.artifacts.errors import RefusedSource, Unreachable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Iterable[str]]

# What older versions of the standard library take for public.
_PRIVATE: tuple[Network, ...] = (
    IPv4Network("192.0.0.0/24"),  # https://www.rfc-editor.org/rfc/rfc6890
    IPv6Network("fec0::/10"),  # https://www.rfc-editor.org/rfc/rfc3879
    IPv6Network("64:ff9b:1::/48"),  # https://www.rfc-editor.org/rfc/rfc8215
)
# Their last 32 bits are an IPv4 address: NAT64 (RFC 6052, 8215) and the compatible form (RFC 4291).
_EMBEDDING = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"), IPv6Network("::/96"))


def guard(allowed: Iterable[str], *, resolve: Resolve | None = None) -> Callable[[str, int], str]:
    """A `Transfer.guard` that lets public addresses through, and private ones of the networks ``allowed`` (CIDRs)."""
    try:
        networks = [ipaddress.ip_network(network) for network in allowed]
    except ValueError as error:
        raise RefusedSource(f"an allowed network is no CIDR: {error}") from None
    look_up = resolve or _resolve

    def address_of(host: str, port: int) -> str:
        reason = "no address"
        for text in look_up(host, port):
            address = ipaddress.ip_address(text)
            forms = _forms(address)
            hidden = [form for form in forms if not _is_public(form)]
            if _any_within(forms, (*metadata_services.IPV4, *metadata_services.IPV6)):
                reason = f"the address {address} of a cloud's own services, which is never downloaded from"
            elif hidden and not _any_within(forms, networks):
                reason = (
                    f"the private address {hidden[0]}, which is not downloaded from unless the chart's value "
                    "tuning.download.allowedPrivateCIDRs allows it"
                )
            else:
                return str(forms[0])
        raise RefusedSource(f"{host} has {reason}")

    return address_of


def _forms(address: Address) -> list[Address]:
    """The address to connect to, and the IPv4 address that a gateway makes of it."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address.sixtofour:
        return [address, address.sixtofour]
    if _any_within([address], _EMBEDDING):
        return [address, IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address]


def _any_within(forms: Iterable[Address], networks: Iterable[Network]) -> bool:
    return any(form.version == network.version and form in network for network in networks for form in forms)


def _is_public(address: Address) -> bool:
    return address.is_global and not address.is_multicast and not _any_within([address], _PRIVATE)


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise Unreachable(f"the name {host} cannot be resolved: {error}") from None
    return [str(entry[4][0]) for entry in found]
