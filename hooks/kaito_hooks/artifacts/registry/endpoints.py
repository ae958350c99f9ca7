"""Where a registry's content is really fetched from: mirrors, plain HTTP, private CAs (env KAITO_REGISTRIES, JSON).

``{"mirrors": {"docker.io": "http://10.0.0.1:5000/docker.io"}, "plainHTTP": ["10.0.0.1:5000"], "caBundle": "<PEM>"}``.
A mirror is a base URL below whose /v2 the registry's repositories lie under the URL's path, like containerd's
hosts.toml with override_path. What a mirror does not have, refuses or does not answer is asked of the registry itself,
as containerd does: https://github.com/containerd/containerd/blob/main/docs/hosts.md
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kaito_hooks.artifacts.errors import InvalidReference
from kaito_hooks.artifacts.registry.reference import Reference

_DOCKER_HUB_API = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A base URL without /v2, and the repository's name there. A mirror never gets the registry's credentials."""

    url: str
    repository: str
    is_mirror: bool


@dataclass(frozen=True, slots=True)
class Registries:
    """How registries are reached."""

    mirrors: Mapping[str, str] = field(default_factory=dict)
    plain_http: frozenset[str] = frozenset()
    ca_bundle: str = ""

    @classmethod
    def parse(cls, text: str) -> Registries:
        """From the environment variable's text, which may be empty. Raises InvalidReference."""
        if not text:
            return cls()
        try:
            document = json.loads(text)
            return cls(
                mirrors={str(k): str(v) for k, v in (document.get("mirrors") or {}).items()},
                plain_http=frozenset(document.get("plainHTTP") or ()),
                ca_bundle=document.get("caBundle") or "",
            )
        except (ValueError, AttributeError, TypeError) as error:
            raise InvalidReference(
                f"KAITO_REGISTRIES is not the JSON of the chart's value registries: {error}"
            ) from None

    def endpoints(self, reference: Reference) -> list[Endpoint]:
        """Where to ask, in order."""
        found = []
        mirror = self.mirrors.get(reference.registry)
        if mirror:
            parts = urlsplit(mirror)
            path = parts.path.strip("/").removeprefix("v2").strip("/")
            repository = f"{path}/{reference.repository}" if path else reference.repository
            found.append(Endpoint(f"{parts.scheme}://{parts.netloc}", repository, is_mirror=True))
        scheme = "http" if reference.registry in self.plain_http else "https"
        host = _DOCKER_HUB_API if reference.registry == "docker.io" else reference.registry
        found.append(Endpoint(f"{scheme}://{host}", reference.repository, is_mirror=False))
        return found

    def tls(self) -> ssl.SSLContext:
        """The system's CAs and the bundle's."""
        context = ssl.create_default_context()
        if self.ca_bundle:
            context.load_verify_locations(cadata=self.ca_bundle)
        return context
