"""Image references and mirrors."""

from __future__ import annotations

import json

import pytest

from kaito_hooks.artifacts.errors import InvalidReference
from kaito_hooks.artifacts.registry.endpoints import Registries
from kaito_hooks.artifacts.registry.reference import Reference, parse

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "registry", "repository", "version"),
    [
        ("python:3.11", "docker.io", "library/python", "3.11"),
        ("curlimages/curl", "docker.io", "curlimages/curl", "latest"),
        ("mcr.microsoft.com/aks/kaito/x:0.0.2", "mcr.microsoft.com", "aks/kaito/x", "0.0.2"),
        ("localhost/x:1", "localhost", "x", "1"),
        ("10.0.0.1:5001/a/b", "10.0.0.1:5001", "a/b", "latest"),
        (f"ghcr.io/a/b:1@{DIGEST}", "ghcr.io", "a/b", DIGEST),
    ],
)
def test_references_are_read_as_container_tools_read_them(
    text: str, registry: str, repository: str, version: str
) -> None:
    found = parse(text)
    assert (found.registry, found.repository, found.version) == (registry, repository, version)


@pytest.mark.parametrize("text", ["", "A/b", "x@sha256:1", "a//b", "a/b:t g", "http://a/b"])
def test_what_is_no_reference_is_refused_showing_it(text: str) -> None:
    with pytest.raises(InvalidReference) as refused:
        parse(text)
    assert repr(text) in str(refused.value)


def test_a_mirror_comes_first_and_the_registry_itself_last() -> None:
    registries = Registries.parse(
        json.dumps({"mirrors": {"docker.io": "http://10.0.0.1:5000/docker.io"}, "plainHTTP": ["10.0.0.1:5001"]})
    )
    first, last = registries.endpoints(parse("python:3"))
    assert (first.url, first.repository, first.is_mirror) == ("http://10.0.0.1:5000", "docker.io/library/python", True)
    assert (last.url, last.is_mirror) == ("https://registry-1.docker.io", False)
    (plain,) = registries.endpoints(Reference("10.0.0.1:5001", "a", "1", None))
    assert plain.url == "http://10.0.0.1:5001"
