"""How a registry is told who asks: challenges, token servers, several credentials."""

from __future__ import annotations

from urllib.parse import parse_qs

import pytest
from tests.unit.artifacts.fake_registry import FakeRegistry, basic, layer

from kaito_hooks.artifacts.errors import AccessDenied
from kaito_hooks.artifacts.registry.access import Access, Challenge, challenges
from kaito_hooks.artifacts.registry.credentials import Credentials
from kaito_hooks.artifacts.registry.endpoints import Endpoint, Registries
from kaito_hooks.artifacts.registry.reader import RegistryReader
from kaito_hooks.artifacts.registry.reference import parse
from kaito_hooks.artifacts.transfer.http import Transfer

ME, OTHER = Credentials("me", "secret"), Credentials("other", "wrong")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", []),
        ("Basic", [("basic", {})]),
        ('Bearer realm="https://a/t",service="s"', [("bearer", {"realm": "https://a/t", "service": "s"})]),
        ("Bearer realm=https://a/t,service=s", [("bearer", {"realm": "https://a/t", "service": "s"})]),
        ("BEARER Realm = https://a/t?b=c , scope=x:y:z", [("bearer", {"realm": "https://a/t?b=c", "scope": "x:y:z"})]),
        (
            'Basic realm="a, b", Bearer realm="https://a/t",scope="repository:x:pull,push"',
            [("basic", {"realm": "a, b"}), ("bearer", {"realm": "https://a/t", "scope": "repository:x:pull,push"})],
        ),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate YII=, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        (r'Basic realm="say \"hi\"", charset="UTF-8"', [("basic", {"realm": 'say "hi"', "charset": "UTF-8"})]),
        (', realm="x" ,, Basic', [("basic", {})]),
    ],
)
def test_all_challenges_of_a_header_are_read(header: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert challenges(header) == [Challenge(scheme, parameters) for scheme, parameters in found]


def read(fake: FakeRegistry, transfer: Transfer, *credentials: Credentials) -> None:
    """Reads a manifest of a registry that wants to know who asks."""
    fake.token_uses = 100
    fake.image("1", layer("w/x", b"x"))
    registries = Registries(plain_http=frozenset([fake.host]))
    image = parse(f"{fake.host}/team/model:1")
    RegistryReader(image, registries=registries, transfer=transfer, credentials=credentials).manifest()


@pytest.mark.parametrize(
    "challenge",
    [
        'Basic realm="x", Bearer realm="http://{host}/token",service="x"',
        'Bearer realm="http://{host}/token?service=x&account=me"',
        "Bearer realm=http://{host}/token,service=x",
        'Negotiate, Bearer realm="http://{host}/token#part",service="x"',
    ],
    ids=["two", "query", "unquoted", "unknown"],
)
def test_a_token_is_asked_for_however_the_challenge_is_written(
    fake: FakeRegistry, transfer: Transfer, challenge: str
) -> None:
    fake.challenge = challenge
    read(fake, transfer, ME)
    (asked,) = [request for request in fake.requests if request.path == "/token"]
    assert asked.query["service"] == ["x"]
    assert asked.query["scope"] == ["repository:team/model:pull"]
    assert {r.path for r in fake.requests if r.headers.get("Authorization") == basic()} == {"/token"}


@pytest.mark.parametrize("realm", ["Registry", "ftp://{host}/token", "https://[", ""])
def test_a_realm_that_is_no_url_is_passed_over(fake: FakeRegistry, transfer: Transfer, realm: str) -> None:
    fake.challenge = f'Bearer realm="{realm}", Basic realm="x"'
    read(fake, transfer, ME)


@pytest.mark.parametrize("scheme", ["http", "HTTP"])
def test_a_password_is_not_taken_from_tls_to_a_server_without_it(transfer: Transfer, scheme: str) -> None:
    endpoint = Endpoint("https://a.example.com", "x", is_mirror=False)
    for credentials in (ME, Credentials("me", "", "refresh")):
        access = Access(endpoint, credentials=[credentials], actions=["pull"], transfer=transfer)
        with pytest.raises(AccessDenied, match="without TLS"):
            access.answer(f'Bearer realm="{scheme}://a.example.com/token"')


def test_an_identity_token_is_exchanged_for_one_of_the_registry(fake: FakeRegistry, transfer: Transfer) -> None:
    fake.accepted = {"refresh"}
    read(fake, transfer, Credentials("00000000-0000-0000-0000-000000000000", "", "refresh"))
    (asked,) = [request for request in fake.requests if request.path == "/token"]
    assert asked.method == "POST"
    assert "Authorization" not in asked.headers
    form = {key: value for key, (value,) in parse_qs(asked.body.decode()).items()}
    assert form.pop("client_id")
    assert form == {
        "grant_type": "refresh_token",
        "service": "x",
        "scope": "repository:team/model:pull",
        "refresh_token": "refresh",
    }


@pytest.mark.parametrize("challenge", [None, 'Basic realm="x"'], ids=["bearer", "basic"])
@pytest.mark.parametrize("credentials", [(OTHER, ME), (ME, OTHER), (OTHER, Credentials("third", "x"), ME)])
def test_all_credentials_are_tried(
    fake: FakeRegistry, transfer: Transfer, challenge: str | None, credentials: tuple[Credentials, ...]
) -> None:
    fake.challenge = challenge or fake.challenge
    read(fake, transfer, *credentials)
    fake.accepted.clear()
    fake.tokens.clear()
    with pytest.raises(AccessDenied, match="credentials are not accepted"):
        read(fake, transfer, *credentials)


def test_credentials_that_may_not_read_this_repository_give_way_to_others(
    fake: FakeRegistry, transfer: Transfer
) -> None:
    """The token server knows both; the registry lets only the second in."""
    fake.accepted.add(basic("other", "wrong"))
    fake.forbidden.add("t0")
    read(fake, transfer, OTHER, ME)
    assert [r.headers.get("Authorization") for r in fake.requests if r.path == "/token"] == [
        basic("other", "wrong"),
        basic(),
    ]
