"""Where access tokens come from: a federated service account token in, or nothing but the machine's own identity.

Wire facts: https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow (third case, federated
credential), RFC 7523, and for the machine's identity
https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token. Access tokens are
signed with a key on disk, so they stay valid when the emulator restarts, as real ones do; they live by the wall clock,
because clients cache them by theirs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaito_local.aks.errors import Refusal, arm_error
from kaito_local.aks.settings import Identity
from kaito_local.machine.pki import write_private

_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Tokens:
    """Gives out and checks access tokens; thread-safe. ``folder`` keeps the key and the time of the last revocation."""

    def __init__(self, identity: Identity, *, folder: Path) -> None:
        self._identity = identity
        self._key_file = folder / "token.key"
        self._revoked_file = folder / "tokens-revoked"
        if not self._key_file.exists():
            write_private(self._key_file, secrets.token_bytes(32))
        self._key = self._key_file.read_bytes()
        self._lock = threading.Lock()
        self._not_before = float(self._revoked_file.read_text()) if self._revoked_file.exists() else 0.0

    def issue(self, tenant: str, form: Mapping[str, str], *, lifetime: float | None = None) -> dict[str, Any]:
        """The answer to a token request. Raises Refusal in the words of Microsoft Entra ID."""
        if tenant.lower() != self._identity.tenant.lower():
            raise _entra(400, "invalid_request", f"AADSTS90002: Tenant '{tenant}' not found.")
        if form.get("grant_type") != "client_credentials":
            raise _entra(400, "unsupported_grant_type", "AADSTS70003: The app requested an unsupported grant type.")
        if form.get("client_id", "").lower() != self._identity.client.lower():
            client = form.get("client_id", "")
            message = f"AADSTS700016: Application with identifier '{client}' was not found in the directory."
            raise _entra(400, "unauthorized_client", message)
        if form.get("client_assertion_type") != _ASSERTION_TYPE:
            raise _entra(400, "invalid_request", "AADSTS50027: client_assertion_type must name a JWT bearer assertion.")
        if not form.get("scope", "").endswith("/.default"):
            raise _entra(400, "invalid_scope", f"AADSTS1002012: The scope '{form.get('scope', '')}' is not valid.")
        self._check_assertion(form.get("client_assertion", ""))
        token, seconds, _ = self._grant(lifetime)
        return {"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": token}

    def issue_to_machine(
        self, query: Mapping[str, str], *, metadata: str, lifetime: float | None = None
    ) -> dict[str, Any]:
        """The answer of the instance metadata service; ``metadata`` is the request's header of that name.

        Raises Refusal in its words.
        """
        if metadata.lower() != "true":
            raise _entra(400, "invalid_request", "Required metadata header not specified")
        for parameter in ("api-version", "resource"):
            if not query.get(parameter):
                raise _entra(400, "invalid_request", f"Required query variable '{parameter}' is missing")
        client = query.get("client_id", "")
        if not self._identity.of_machines or client.lower() not in ("", self._identity.client.lower()):
            raise _entra(400, "invalid_request", "Identity not found")
        token, seconds, expires = self._grant(lifetime)
        return {
            "access_token": token,
            "client_id": self._identity.client,
            "expires_in": str(seconds),
            "expires_on": str(int(expires)),
            "resource": query["resource"],
            "token_type": "Bearer",
        }

    def check(self, authorization: str | None) -> None:
        """Raises Refusal (401) unless the header carries a live token of ours."""
        kind, _, token = (authorization or "").partition(" ")
        if not token or kind.lower() != "bearer":
            raise self._unauthorized(
                "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing."
            )
        body, _, signature = token.partition(".")
        if not hmac.compare_digest(signature, self._signature(body)):
            raise self._unauthorized("InvalidAuthenticationToken", "The access token is invalid.")
        claims = json.loads(base64.urlsafe_b64decode(body))
        with self._lock:
            revoked = claims["iat"] <= self._not_before
        if revoked:
            raise self._unauthorized("InvalidAuthenticationToken", "The access token has been revoked.")
        if claims["exp"] < time.time():
            message = "The access token expiry UTC time is earlier than current UTC time."
            raise self._unauthorized("ExpiredAuthenticationToken", message)

    def revoke(self) -> None:
        """Makes every token that was given out so far invalid."""
        with self._lock:
            self._not_before = time.time()
            write_private(self._revoked_file, repr(self._not_before).encode(), mode=0o644)

    def _grant(self, lifetime: float | None) -> tuple[str, int, float]:
        """A token, its lifetime in seconds and when it ends, in seconds since 1970."""
        lifetime = self._identity.token_lifetime if lifetime is None else lifetime
        now = time.time()
        claims = {"iat": now, "exp": now + lifetime, "jti": secrets.token_hex(8)}
        return self._sign(json.dumps(claims).encode()), int(lifetime), now + lifetime

    def _check_assertion(self, assertion: str) -> None:
        if not assertion.strip():
            raise _entra(401, "invalid_client", "AADSTS50027: JWT token is invalid or malformed.")
        if not self._identity.subject:
            return
        claims = _claims(assertion)
        audience = claims.get("aud", [])
        if self._identity.audience not in ([audience] if isinstance(audience, str) else audience):
            raise _entra(401, "invalid_client", "AADSTS700212: No matching federated identity record for the audience.")
        if claims.get("sub") != self._identity.subject:
            message = (
                "AADSTS700213: No matching federated identity record found for presented assertion subject "
                f"'{claims.get('sub', '')}'."
            )
            raise _entra(401, "invalid_client", message)
        if claims.get("exp", 0) < time.time():
            raise _entra(401, "invalid_client", "AADSTS700024: Client assertion is not within its valid time range.")

    def _sign(self, claims: bytes) -> str:
        body = base64.urlsafe_b64encode(claims).decode()
        return f"{body}.{self._signature(body)}"

    def _signature(self, body: str) -> str:
        return hmac.new(self._key, body.encode(), hashlib.sha256).hexdigest()

    def _unauthorized(self, code: str, message: str) -> Refusal:
        challenge = (
            f'Bearer authorization_uri="https://login.microsoftonline.com/{self._identity.tenant}", '
            f'error="invalid_token", error_description="{message}"'
        )
        return arm_error(401, code, message, headers={"WWW-Authenticate": challenge})


def _claims(assertion: str) -> dict[str, Any]:
    """What a JWT says; its signature is not checked, the cluster's issuer is not reachable from here."""
    try:
        _, body, _ = assertion.split(".")
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError as error:
        raise _entra(401, "invalid_client", "AADSTS50027: JWT token is invalid or malformed.") from error
    return claims if isinstance(claims, dict) else {}


def _entra(status: int, error: str, description: str) -> Refusal:
    return Refusal(status, {"error": error, "error_description": description, "error_codes": []})
