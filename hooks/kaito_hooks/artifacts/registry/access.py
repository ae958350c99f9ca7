"""Access to one repository of a registry: its challenges, answered with a password or with a token of its token server.

https://www.rfc-editor.org/rfc/rfc9110#section-11 (challenges),
https://distribution.github.io/distribution/spec/auth/token/ (a token for a password) and
https://distribution.github.io/distribution/spec/auth/oauth/ (a token for an identity token).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlencode, urlsplit

from kaito_hooks.artifacts.errors import AccessDenied
from kaito_hooks.artifacts.registry.credentials import Credentials
from kaito_hooks.artifacts.registry.endpoints import Endpoint
from kaito_hooks.artifacts.transfer.http import Transfer

_ANSWER_LIMIT = 1 << 20
_TOKEN = r"[\w!#$%&'*+.^`|~-]+"
_PARAMETER = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*))')
_SCHEME = re.compile(rf"({_TOKEN})(?=\s|,|$)")
_OTHER = re.compile(r"[^\s,]+")

Answer = tuple[int, Mapping[str, str], bytes]


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a registry offers: ``basic`` or ``bearer``, in lower case, and its parameters."""

    scheme: str
    parameters: dict[str, str]


def challenges(header: str) -> list[Challenge]:
    """All challenges of a WWW-Authenticate header, in their order; what is none is skipped."""
    found: list[Challenge] = []
    position = 0
    while position < len(header):
        if parameter := _PARAMETER.match(header, position):
            name, quoted, plain = parameter.groups()
            if found:
                found[-1].parameters[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if plain is None else plain
            position = parameter.end()
        elif scheme := _SCHEME.match(header, position):
            found.append(Challenge(scheme[1].lower(), {}))
            position = scheme.end()
        else:
            other = _OTHER.match(header, position)
            position = other.end() if other else position + 1
    return found


class Access:
    """What is sent to one endpoint so that it lets us in: nothing until it asks. A mirror gets no credentials."""

    def __init__(
        self, endpoint: Endpoint, *, credentials: Sequence[Credentials], actions: Sequence[str], transfer: Transfer
    ) -> None:
        self.endpoint = endpoint
        self._credentials = [] if endpoint.is_mirror else list(credentials)
        self._actions = actions
        self._transfer = transfer
        self._challenge = ""
        self._authorization: str | None = None

    @property
    def base(self) -> str:
        """The repository's URL."""
        return f"{self.endpoint.url}/v2/{self.endpoint.repository}"

    @property
    def headers(self) -> dict[str, str]:
        """What was found to be wanted."""
        return {"Authorization": self._authorization} if self._authorization else {}

    def request(self, ask: Callable[[Mapping[str, str]], Answer]) -> Answer:
        """What ``ask`` gets when it sends these headers; after a refusal, with each of the credentials in turn."""
        answer = ask(self.headers)
        if answer[0] == 401 and self.answer(answer[1].get("WWW-Authenticate", "")):
            answer = ask(self.headers)
        while answer[0] in (401, 403) and self._take_next():
            answer = ask(self.headers)
        return answer

    def answer(self, header: str) -> bool:
        """Answers a 401; whether there is something new to try. Raises AccessDenied, Unreachable."""
        self._challenge = header
        for challenge in sorted(challenges(header), key=lambda challenge: challenge.scheme != "bearer"):
            authorization = None
            if challenge.scheme == "bearer":
                authorization = self._bearer(challenge.parameters)
            elif challenge.scheme == "basic":
                authorization = self._basic()
            if authorization:
                self._authorization = authorization
                return True
        return False

    def _take_next(self) -> bool:
        while len(self._credentials) > 1:
            del self._credentials[0]
            if self.answer(self._challenge):
                return True
        return False

    def _basic(self) -> str | None:
        if not self._credentials or not self._credentials[0].password:
            return None
        pair = f"{self._credentials[0].username}:{self._credentials[0].password}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _bearer(self, parameters: Mapping[str, str]) -> str | None:
        realm = _url(parameters.get("realm", ""))
        if realm is None:
            return None
        if self._credentials and realm.scheme == "http" and self.endpoint.url.startswith("https:"):
            raise AccessDenied(f"{self.endpoint.url} wants its password sent to a server without TLS")
        wanted = [("service", parameters["service"])] if "service" in parameters else []
        scopes = self._scopes(parameters.get("scope", "").split())
        if self._credentials and self._credentials[0].identity_token:
            form = [
                *wanted,
                ("grant_type", "refresh_token"),
                ("client_id", "kaito"),
                ("refresh_token", self._credentials[0].identity_token),
                ("scope", " ".join(scopes)),
            ]
            status, _, body = self._transfer.send(
                "POST",
                realm.geturl(),
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                body=urlencode(form).encode(),
            )
        else:
            asked = urlencode([*wanted, *(("scope", scope) for scope in scopes)])
            basic = self._basic()
            status, _, body = self._transfer.get(
                realm._replace(query="&".join(filter(None, (realm.query, asked)))).geturl(),
                headers={"Authorization": basic} if basic else {},
                limit=_ANSWER_LIMIT,
            )
        token = _token(body) if status == 200 else None
        return f"Bearer {token}" if token else None

    def _scopes(self, asked: Sequence[str]) -> list[str]:
        """The scopes that a challenge asks for, with every action that this access is for."""
        own = f"repository:{self.endpoint.repository}:"
        scopes = []
        for scope in asked or [own]:
            resource, _, actions = scope.rpartition(":")
            if scope.startswith("repository:"):
                actions = ",".join(dict.fromkeys([*filter(None, actions.split(",")), *self._actions]))
            scopes.append(f"{resource}:{actions}")
        return scopes


def _url(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    return parts._replace(fragment="") if parts.scheme in ("http", "https") and parts.netloc else None


def _token(body: bytes) -> str | None:
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
    except (ValueError, AttributeError):
        return None
    return token if isinstance(token, str) and re.fullmatch(r"[\x21-\x7e]+", token) else None
