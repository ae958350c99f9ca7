"""Which requests go through a proxy: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, read as the kubelet and containerd do.

https://pkg.go.dev/golang.org/x/net/http/httpproxy#Config
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

import urllib3

from kaito_hooks.artifacts.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxy of each scheme, with its password if it has one, and for which hosts none is asked."""

    by_scheme: Mapping[str, str] = field(default_factory=dict, repr=False)
    direct: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Proxies:
        """Raises ArtifactError for a proxy that is no URL."""
        found = {}
        for scheme in ("http", "https"):
            name = f"{scheme.upper()}_PROXY"
            if text := environ.get(name) or environ.get(name.lower(), ""):
                found[scheme] = _proxy(text, variable=name)
        direct = environ.get("NO_PROXY") or environ.get("no_proxy", "")
        return cls(found, tuple(filter(None, (entry.strip().lower() for entry in direct.split(",")))))

    def of(self, url: str) -> str | None:
        """The proxy's URL for a request of ``url``; None if it is sent directly."""
        target = urllib3.util.parse_url(url)
        host = (target.host or "").strip("[]")
        port = target.port or (443 if target.scheme == "https" else 80)
        if _is_this_machine(host) or any(_covers(entry, host, port) for entry in self.direct):
            return None
        return self.by_scheme.get(target.scheme or "")


def _proxy(text: str, *, variable: str) -> str:
    try:
        parsed = urllib3.util.parse_url(text if "://" in text else f"http://{text}")
    except ValueError:
        parsed = urllib3.util.Url()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ArtifactError(f"{variable} is no http or https URL of a proxy, as in http://proxy.example.com:3128")
    return parsed.url


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdigit():
        if int(wanted) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*")
    return host == entry or host.endswith(entry if entry.startswith(".") else f".{entry}")
