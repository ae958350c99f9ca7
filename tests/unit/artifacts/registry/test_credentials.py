"""Which credentials of mounted Secrets are for an image, and what is said of those that cannot be used."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from kaito_hooks.artifacts.errors import AccessDenied
from kaito_hooks.artifacts.registry.credentials import Credentials, find
from kaito_hooks.artifacts.registry.reference import parse

GHCR = parse("ghcr.io/team/x:1")


def encoded(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "secret"
    folder.mkdir()
    return folder / ".dockerconfigjson"


def write(path: Path, auths: dict[str, Any], **more: Any) -> None:
    path.write_text(json.dumps({"auths": auths, **more}))


def test_credentials_come_with_the_longest_matching_registry_path_first(secret: Path) -> None:
    auths = {
        "https://index.docker.io/v1/": {"auth": encoded("hub:1")},
        "ghcr.io": {"username": "all", "password": "2"},
        "ghcr.io/team": {"username": "team", "password": "3"},
        "ghcr.io/tea": {"username": "tea", "password": "4"},
    }
    write(secret, auths)
    team, everybody = Credentials("team", "3"), Credentials("all", "2")
    assert find(GHCR, [secret]) == [team, everybody]
    assert find(parse("ghcr.io/other/x:1"), [secret]) == [everybody]
    assert find(parse("python"), [secret]) == [Credentials("hub", "1")]
    assert find(parse("quay.io/x/y"), [secret, secret.with_name("absent")]) == []
    assert "3" not in repr(find(GHCR, [secret]))


def test_credentials_of_several_secrets_are_all_found_and_each_once(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for path, user in zip(files, ("first", "second", "first"), strict=True):
        write(path, {"ghcr.io": {"username": user, "password": "1"}})
    assert [found.username for found in find(GHCR, files)] == ["first", "second"]


def test_credentials_may_be_for_a_pattern_of_registries(secret: Path) -> None:
    write(
        secret,
        {"*.azurecr.io": {"username": "any", "password": "1"}, "a.azurecr.io/b": {"username": "b", "password": "2"}},
    )
    assert find(parse("a.azurecr.io/x:1"), [secret]) == [Credentials("any", "1")]
    assert find(parse("a.azurecr.io/b/x:1"), [secret]) == [Credentials("b", "2"), Credentials("any", "1")]
    assert find(parse("azurecr.io/x:1"), [secret]) == []
    assert find(parse("x.a.azurecr.io/x:1"), [secret]) == []


@pytest.mark.parametrize("pair", ["me:pass", "me:passw", "me:passwo", "me:with:colon"])
def test_an_auth_is_read_with_and_without_its_padding(secret: Path, pair: str) -> None:
    for auth in (encoded(pair), encoded(pair).rstrip("="), encoded(pair) + "\n"):
        write(secret, {"ghcr.io": {"auth": auth}})
        assert find(GHCR, [secret]) == [Credentials("me", pair.removeprefix("me:"))]


@pytest.mark.parametrize(
    "entry", [{}, None, {"auth": None}, {"username": "me", "password": None}, {"auth": "", "email": "me@example.com"}]
)
def test_an_entry_without_credentials_is_none(secret: Path, entry: dict[str, Any] | None) -> None:
    write(secret, {"ghcr.io": entry})
    assert find(GHCR, [secret]) == []


def test_an_identity_token_is_found_beside_its_empty_password(secret: Path) -> None:
    """As `az acr login` leaves it."""
    user = "00000000-0000-0000-0000-000000000000"
    write(secret, {"a.azurecr.io": {"auth": encoded(f"{user}:"), "identitytoken": "refresh"}})
    (found,) = find(parse("a.azurecr.io/x:1"), [secret])
    assert found == Credentials(user, "", "refresh")
    assert "refresh" not in repr(found)


def test_a_secret_of_the_old_type_is_read(secret: Path) -> None:
    secret.with_name(".dockercfg").write_text(json.dumps({"ghcr.io": {"auth": encoded("old:1")}}))
    assert find(GHCR, [secret]) == [Credentials("old", "1")]


@pytest.mark.parametrize("content", ["hunter2", "[1]", '{"auths": [1]}', '{"auths": {"ghcr.io": {"auth": 5}}}', '"x"'])
def test_a_secret_that_is_no_docker_config_is_named_without_its_content(secret: Path, content: str) -> None:
    secret.write_text(content)
    with pytest.raises(AccessDenied) as refused:
        find(GHCR, [secret])
    assert "hunter2" not in str(refused.value)
    assert str(secret.parent) in str(refused.value)


@pytest.mark.parametrize(
    "auth", ["no base64!", encoded("without a colon"), "/w=="], ids=["garbage", "no pair", "no text"]
)
def test_an_auth_that_is_none_is_told_without_showing_it(secret: Path, auth: str) -> None:
    write(secret, {"ghcr.io": {"auth": auth}})
    with pytest.raises(AccessDenied, match=r"an auth for ghcr\.io that is no user:password") as refused:
        find(GHCR, [secret])
    assert auth not in str(refused.value)
    assert find(parse("quay.io/x/y"), [secret]) == []


@pytest.mark.parametrize(
    "document",
    [
        {"auths": {"ghcr.io": {}}, "credsStore": "desktop"},
        {"credHelpers": {"ghcr.io": "desktop"}},
        {"auths": {}, "credHelpers": {"ghcr.io": "desktop"}},
    ],
    ids=["store", "helper", "helper beside"],
)
def test_a_credential_store_is_told(secret: Path, document: dict[str, Any]) -> None:
    secret.write_text(json.dumps(document))
    with pytest.raises(AccessDenied, match=r"to the credential store desktop; create it with"):
        find(GHCR, [secret])
    assert find(parse("quay.io/x/y"), [secret]) == []


def test_a_secret_that_cannot_be_used_does_not_hide_one_that_can(secret: Path, tmp_path: Path) -> None:
    write(secret, {"ghcr.io": {}}, credsStore="desktop")
    write(tmp_path / "other", {"ghcr.io": {"username": "me", "password": "1"}})
    assert find(GHCR, [secret, tmp_path / "other"]) == [Credentials("me", "1")]
