"""Image names on a cluster whose own registry answers for the public ones.

Each public registry is a folder of the local registry: ``curlimages/curl`` lies there as ``docker.io/curlimages/curl``,
so equal names of two public registries do not clash, and default values of charts and manifests work as written.
"""

from __future__ import annotations

from dataclasses import dataclass

PUBLIC_REGISTRIES = ("docker.io", "mcr.microsoft.com", "ghcr.io", "registry.k8s.io", "quay.io")


@dataclass(frozen=True, slots=True)
class Reference:
    """A tagged image: registry host, repository and tag."""

    registry: str
    repository: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """As container runtimes read it: missing parts are docker.io, ``library`` and ``latest``."""
        name, _, tag = text.rpartition(":") if ":" in text.rsplit("/", 1)[-1] else (text, "", "")
        first, _, rest = name.partition("/")
        if rest and ("." in first or ":" in first or first == "localhost"):
            registry, repository = first, rest
        else:
            registry, repository = "docker.io", name if rest else f"library/{name}"
        return cls(registry=registry, repository=repository, tag=tag or "latest")

    @property
    def local_repository(self) -> str:
        """The repository of the local registry that answers for this one."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}:{self.tag}"


def mirrors_for_charts(registry: str, *, further: tuple[str, ...] = ()) -> dict[str, str]:
    """The chart value ``registries.mirrors``: public registry host to its folder of the registry at ``host:port``."""
    return {host: f"http://{registry}/{host}" for host in (*PUBLIC_REGISTRIES, *further)}
