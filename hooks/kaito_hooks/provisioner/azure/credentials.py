"""Who the provisioner is to Azure: a token per request from a credential that can be rebuilt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import DefaultAzureCredential, WorkloadIdentityCredential

from kaito_hooks.provisioner.configuration import AzureConfiguration
from kaito_hooks.runtime import Clock

REBUILD_INTERVAL = 60.0
_TIMEOUTS = {"connection_timeout": 10, "read_timeout": 15, "retry_total": 0}


class Credential(Protocol):
    """The part of azure-identity's credentials that is used here."""

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """A token that is still good for a while, from the cache where possible."""


class RenewableCredential:
    """A credential that forgets its cached token when ARM refuses it.

    azure-identity keeps a token until it expires, even if the other side has revoked it; only a new credential asks
    again. At most once a minute, so that a wrong set-up is no storm.
    """

    def __init__(self, build: Callable[[], Credential], clock: Clock) -> None:
        self._build = build
        self._clock = clock
        self._lock = threading.Lock()
        self._credential: Credential | None = None
        self._built_at = 0.0

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """A token; ClientAuthenticationError whatever kept us from one."""
        try:
            return self._current().get_token(*scopes, **options)
        except ClientAuthenticationError as error:
            if (refusal := _managed_identity(error)) is not None:
                raise ClientAuthenticationError(message=refusal, error=error) from error
            raise
        except Exception as error:
            # A missing token file, an unreachable authority, a bad option: all mean that there is no token.
            raise ClientAuthenticationError(message=f"no token for ARM: {_sentence(error)}", error=error) from error

    def refused(self) -> None:
        """ARM did not accept the token."""
        with self._lock:
            if self._clock.monotonic() - self._built_at >= REBUILD_INTERVAL:
                self._credential = None

    def problem(self, scope: str) -> str | None:
        """Why no token can be had at this moment, or None."""
        try:
            self.get_token(scope)
        except ClientAuthenticationError as error:
            return _sentence(error)
        return None

    def _current(self) -> Credential:
        with self._lock:
            if self._credential is None:
                self._credential = self._build()
                self._built_at = self._clock.monotonic()
            return self._credential


def credential(configuration: AzureConfiguration, clock: Clock) -> RenewableCredential:
    """The credential that the configuration asks for.

    Workload identity: one POST to ``{authority}/{tenant}/oauth2/v2.0/token`` with the service account's token, no
    discovery, so that any authority will do. In managed mode the SDK's default chain.
    """

    def workload_identity() -> Credential:
        options: dict[str, Any] = dict(_TIMEOUTS)
        if configuration.authority_host:
            options |= {"authority": configuration.authority_host, "disable_instance_discovery": True}
        return WorkloadIdentityCredential(
            tenant_id=configuration.tenant_id,
            client_id=configuration.client_id,
            token_file_path=configuration.federated_token_file,
            **options,
        )

    def default_chain() -> Credential:
        options: dict[str, Any] = dict(_TIMEOUTS)
        if configuration.authority_host:
            options["authority"] = configuration.authority_host
        if configuration.client_id:
            options["managed_identity_client_id"] = configuration.client_id
        return DefaultAzureCredential(**options)

    return RenewableCredential(default_chain if configuration.managed else workload_identity, clock)


def _managed_identity(error: Exception) -> str | None:
    """What a chain of credentials says of the managed identity; of the others a Pod has none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line.startswith("ManagedIdentityCredential")), None)


def _sentence(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
