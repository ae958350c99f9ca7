"""The real SDK client, with the pipeline that a controller needs.

The SDK's default pipeline retries writes for minutes and registers resource providers by polling; a reconcile must do
neither. Here a request is sent once and ends within its timeouts, every answer is counted, and writes pass the
throttle.
"""

from __future__ import annotations

from typing import Any

from azure.core.credentials import TokenCredential
from azure.core.exceptions import ServiceRequestError
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import (
    ContentDecodePolicy,
    HeadersPolicy,
    HTTPPolicy,
    ProxyPolicy,
    RequestIdPolicy,
    RetryPolicy,
    UserAgentPolicy,
)
from azure.mgmt.containerservice import ContainerServiceClient

from kaito_hooks.provisioner.azure.credentials import RenewableCredential
from kaito_hooks.provisioner.azure.errors import retry_after
from kaito_hooks.provisioner.azure.throttle import Throttle
from kaito_hooks.provisioner.configuration import AzureConfiguration
from kaito_hooks.provisioner.metrics import ProvisionerMetrics
from kaito_hooks.runtime import Clock

PUBLIC_SCOPE = "https://management.azure.com/.default"
API_VERSION = "2026-08-01"
TIMEOUTS: dict[str, Any] = {"connection_timeout": 10, "read_timeout": 30}
USER_AGENT = "kaito-gpu-provisioner"

_WRITES = ("PUT", "PATCH", "POST", "DELETE")


class Authentication(HTTPPolicy[Any, Any]):
    """A token from the credential's cache on every request; no state of its own, so any number of threads may send."""

    def __init__(self, credential: RenewableCredential, scope: str) -> None:
        super().__init__()
        self._credential = credential
        self._scope = scope

    def send(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        """Send with the token; after a 401 the credential is asked for another one next time."""
        if not request.http_request.url.lower().startswith("https://"):
            raise ServiceRequestError("tokens are not sent without TLS")
        token = self._credential.get_token(self._scope).token
        request.http_request.headers["Authorization"] = f"Bearer {token}"
        response = self.next.send(request)
        if response.http_response.status_code == 401:
            self._credential.refused()
        return response


class Accounting(HTTPPolicy[Any, Any]):
    """Counts answers, and lets writes through only while ARM has not asked to wait."""

    def __init__(self, throttle: Throttle, metrics: ProvisionerMetrics, clock: Clock) -> None:
        super().__init__()
        self._throttle = throttle
        self._metrics = metrics
        self._clock = clock

    def send(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        """Check, send, count."""
        method = request.http_request.method
        if method in _WRITES:
            self._throttle.check()
        code = "<error>"
        try:
            response: PipelineResponse[Any, Any] = self.next.send(request)
            code = str(response.http_response.status_code)
        finally:
            self._metrics.arm_requests.labels(method, code).inc()
        if code == "429":
            wait = retry_after(response.http_response.headers, self._clock.now())
            self._metrics.arm_throttled.inc(self._throttle.close(wait))
        elif method in _WRITES and code.startswith("2"):
            self._throttle.succeeded()
        return response


def sdk_client(
    configuration: AzureConfiguration,
    credential: RenewableCredential,
    *,
    throttle: Throttle,
    metrics: ProvisionerMetrics,
    clock: Clock,
) -> ContainerServiceClient:
    """azure-mgmt-containerservice's client for the configured cloud."""
    scope = token_scope(configuration)
    policies: list[Any] = [
        RequestIdPolicy(),
        HeadersPolicy(),
        UserAgentPolicy(USER_AGENT),
        ProxyPolicy(),
        ContentDecodePolicy(),
        RetryPolicy(retry_total=0),
        Authentication(credential, scope),
        Accounting(throttle, metrics, clock),
    ]
    token_credential: TokenCredential = credential
    return ContainerServiceClient(
        token_credential,
        configuration.subscription_id,
        configuration.arm_endpoint or None,
        credential_scopes=[scope],
        api_version=configuration.api_version or API_VERSION,
        policies=policies,
        **TIMEOUTS,
    )


def token_scope(configuration: AzureConfiguration) -> str:
    """The scope of tokens for the configured ARM."""
    return configuration.token_scope or PUBLIC_SCOPE
