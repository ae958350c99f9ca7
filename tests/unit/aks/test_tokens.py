"""The token endpoint through the unmodified WorkloadIdentityCredential."""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CredentialUnavailableError, ManagedIdentityCredential
from azure.mgmt.containerservice import ContainerServiceClient
from tests.eventually import PATIENCE
from tests.unit.aks.sdk import credential, sdk

from kaito_local.aks import Emulator, Identity, Settings

SCOPE = "https://management.azure.com/.default"


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part(claims)}.signature"


def test_a_federated_token_is_exchanged_in_one_request(cloud: Emulator, tmp_path: Path) -> None:
    token = credential(cloud, tmp_path).get_token(SCOPE)
    assert token.expires_on > time.time() + 3000
    (entry,) = cloud.requests()
    assert entry["path"] == f"/{cloud.settings.identity.tenant}/oauth2/v2.0/token"
    assert "access_token" not in entry["answer"]
    assert "client_assertion" not in entry["body"]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"tenant_id": "11111111-0000-0000-0000-000000000000"}, "AADSTS90002"), ({"client_id": "me"}, "AADSTS700016")],
    ids=["tenant", "client"],
)
def test_a_wrong_identity_is_refused(cloud: Emulator, tmp_path: Path, wrong: dict[str, str], code: str) -> None:
    with pytest.raises(ClientAuthenticationError, match=code):
        credential(cloud, tmp_path, **wrong).get_token(SCOPE)


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Emulator]:
    identity = Identity(subject="system:serviceaccount:gpu:gpu-provisioner")
    with Emulator(Settings(directory=tmp_path / "cloud", identity=identity)) as cloud:
        yield cloud


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, ""),
        ({"sub": "system:serviceaccount:other:default"}, "AADSTS700213"),
        ({"aud": ["https://kubernetes.default.svc"]}, "AADSTS700212"),
        ({"exp": 1}, "AADSTS700024"),
    ],
    ids=["matching", "other account", "other audience", "expired"],
)
def test_a_service_account_s_token_must_match(
    strict: Emulator, tmp_path: Path, changed: dict[str, object], code: str
) -> None:
    claims = {
        "sub": "system:serviceaccount:gpu:gpu-provisioner",
        "aud": ["api://AzureADTokenExchange"],
        "exp": time.time() + 600,
    }
    who = credential(strict, tmp_path)
    (tmp_path / "federated-token").write_text(jwt(**{**claims, **changed}))
    if not code:
        assert who.get_token(SCOPE).token
        return
    with pytest.raises(ClientAuthenticationError, match=code):
        who.get_token(SCOPE)


def test_arm_wants_a_live_token(cloud: Emulator, aks: ContainerServiceClient, tmp_path: Path) -> None:
    assert list(aks.agent_pools.list("kaito", "kaito")) == []
    cloud.tokens.revoke()
    with pytest.raises(ClientAuthenticationError):
        list(aks.agent_pools.list("kaito", "kaito"))
    assert "WWW-Authenticate" in cloud.requests()[-1]["headers"]
    with sdk(cloud, tmp_path) as fresh:
        assert list(fresh.agent_pools.list("kaito", "kaito")) == []


def test_tokens_can_be_short_lived_and_refused(cloud: Emulator, tmp_path: Path) -> None:
    cloud.fault(target="token", lifetime=5)
    assert credential(cloud, tmp_path).get_token(SCOPE).expires_on < time.time() + 10
    cloud.fault(target="token", status=503, body={"error": "temporarily_unavailable"})
    with pytest.raises(ClientAuthenticationError):
        credential(cloud, tmp_path).get_token(SCOPE)


def test_a_token_that_has_expired_is_refused_by_arm_and_another_is_had(cloud: Emulator, tmp_path: Path) -> None:
    cloud.fault(target="token", lifetime=0)
    with sdk(cloud, tmp_path) as aks:
        with pytest.raises(ClientAuthenticationError) as caught:
            list(aks.agent_pools.list("kaito", "kaito"))
        assert caught.value.error.code == "ExpiredAuthenticationToken"
        assert list(aks.agent_pools.list("kaito", "kaito")) == []


class Machine:
    """A machine whose metadata service is an emulator."""

    def __init__(self, cloud: Emulator) -> None:
        self.cloud = cloud

    def credential(self, client_id: str | None = None) -> ManagedIdentityCredential:
        return ManagedIdentityCredential(
            client_id=client_id, connection_verify=str(self.cloud.endpoints.authority), retry_total=0
        )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with Emulator(Settings(directory=tmp_path / "cloud", identity=Identity(of_machines=True))) as cloud:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", cloud.endpoints.arm)
        yield Machine(cloud)


@pytest.mark.parametrize("client_id", [None, Identity().client], ids=["system", "user"])
def test_a_machine_has_an_identity_without_any_secret(machine: Machine, tmp_path: Path, client_id: str | None) -> None:
    who = machine.credential(client_id)
    assert who.get_token(SCOPE).expires_on > time.time() + 3000
    (entry,) = machine.cloud.requests()
    assert (entry["path"], entry["query"]["resource"]) == (
        "/metadata/identity/oauth2/token",
        "https://management.azure.com",
    )
    assert "access_token" not in entry["answer"]
    with sdk(machine.cloud, tmp_path, credential=who) as aks:
        assert list(aks.agent_pools.list("kaito", "kaito")) == []


def test_a_machine_has_no_other_identity(machine: Machine) -> None:
    with pytest.raises(CredentialUnavailableError, match="Identity not found"):
        machine.credential("somebody-else").get_token(SCOPE)


def test_machines_have_no_identity_unless_they_are_given_one(cloud: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", cloud.endpoints.arm)
    with pytest.raises(CredentialUnavailableError, match="Identity not found"):
        Machine(cloud).credential().get_token(SCOPE)


def test_the_metadata_service_answers_no_request_that_somebody_else_forwarded(machine: Machine) -> None:
    """A proxy or a redirect carries no header ``Metadata``."""
    context = ssl.create_default_context(cafile=str(machine.cloud.endpoints.authority))
    url = f"{machine.cloud.endpoints.arm}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x"
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(url, context=context, timeout=PATIENCE)
