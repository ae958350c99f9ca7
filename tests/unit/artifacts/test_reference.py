"""Image references, mirrors and credentials."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from kaito_hooks.artifacts.credentials import Credentials, find
from kaito_hooks.artifacts.errors import InvalidReference
from kaito_hooks.artifacts.reference import Reference, parse
from kaito_hooks.artifacts.registries import Registries

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


def test_the_longest_matching_registry_path_gives_the_credentials(tmp_path: Path) -> None:
    secret = tmp_path / ".dockerconfigjson"
    auths = {
        "https://index.docker.io/v1/": {"auth": base64.b64encode(b"hub:1").decode()},
        "ghcr.io": {"username": "all", "password": "2"},
        "ghcr.io/team": {"username": "team", "password": "3"},
        "ghcr.io/tea": {"username": "tea", "password": "4"},
    }
    secret.write_text(json.dumps({"auths": auths}))
    assert find(parse("ghcr.io/team/x:1"), [secret]) == Credentials("team", "3")
    assert find(parse("ghcr.io/other/x:1"), [secret]) == Credentials("all", "2")
    assert find(parse("python"), [secret]) == Credentials("hub", "1")
    assert find(parse("quay.io/x/y"), [secret, tmp_path / "absent"]) is None
    assert "3" not in repr(find(parse("ghcr.io/team/x:1"), [secret]))


def test_a_secret_that_is_no_docker_config_is_named_without_its_content(tmp_path: Path) -> None:
    secret = tmp_path / ".dockerconfigjson"
    secret.write_text("hunter2")
    with pytest.raises(InvalidReference) as refused:
        find(parse("x/y"), [secret])
    assert "hunter2" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_a_mirror_comes_first_and_the_registry_itself_last() -> None:
    registries = Registries.parse(
        json.dumps({"mirrors": {"docker.io": "http://10.0.0.1:5000/docker.io"}, "plainHTTP": ["10.0.0.1:5001"]})
    )
    first, last = registries.endpoints(parse("python:3"))
    assert (first.url, first.repository, first.is_mirror) == ("http://10.0.0.1:5000", "docker.io/library/python", True)
    assert (last.url, last.is_mirror) == ("https://registry-1.docker.io", False)
    (plain,) = registries.endpoints(Reference("10.0.0.1:5001", "a", "1", None))
    assert plain.url == "http://10.0.0.1:5001"
