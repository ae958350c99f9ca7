"""What a client of the cloud meets: requests in, answers out, with faults in between and everything written down.

Routes (all case-insensitive, as ARM's are):

POST /{tenant}/oauth2/v2.0/token
GET  /metadata/identity/oauth2/token    as the instance metadata service of the machines
GET  {cluster}
GET  {cluster}/agentPools
GET, PUT, DELETE {cluster}/agentPools/{pool}
POST {cluster}/agentPools/{pool}/abort
POST {cluster}/agentPools/{pool}/upgradeNodeImageVersion
GET  /subscriptions/{s}/providers/Microsoft.ContainerService/locations/{l}/operations|operationresults/{id}
"""

from __future__ import annotations

import fnmatch
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from kaito_local.aks.clock import Clock
from kaito_local.aks.endpoints.tokens import Tokens
from kaito_local.aks.errors import Refusal, aks_error, arm_error
from kaito_local.aks.faults import Fault, FaultBook, Target
from kaito_local.aks.pools.agentpools import AgentPools
from kaito_local.aks.pools.pool import CLAIM_UID_LABEL, SUCCEEDED, WORKSPACE_LABEL, Failure, Operation, Pool
from kaito_local.aks.pools.records import Lines
from kaito_local.aks.pools.validation import SYSTEM_POOL
from kaito_local.aks.settings import Settings

_TOKEN = re.compile(r"/(?P<tenant>[^/]+)/oauth2/v2\.0/token", re.IGNORECASE)
_MACHINE_TOKEN = "/metadata/identity/oauth2/token"
_CLUSTER = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/Microsoft\.ContainerService"
    r"/managedClusters/(?P<cluster>[^/]+)(?P<rest>/.*)?",
    re.IGNORECASE,
)
_OPERATION = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/providers/Microsoft\.ContainerService/locations/(?P<location>[^/]+)"
    r"/(?P<form>operations|operationresults)/(?P<id>[^/]+)",
    re.IGNORECASE,
)
_POOLS = re.compile(r"/agentPools/?", re.IGNORECASE)
_POOL = re.compile(r"/agentPools/(?P<pool>[^/]+)(/(?P<action>abort|upgradeNodeImageVersion))?", re.IGNORECASE)
_API_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
_UPSTREAM_OWNERS = ("karpenter.sh/provisioner-name", "karpenter.sh/nodepool")
_UPSTREAM_USERS = (WORKSPACE_LABEL, "kaito.sh/ragengine")


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came; ``base`` is the address under which the client reached us, header names are lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    base: str

    @property
    def path(self) -> str:
        """The path, without the query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """The query; keys in lower case."""
        return {key.lower(): value for key, value in parse_qsl(urlsplit(self.target).query)}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back; ``cut``: nothing is, the connection is closed."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False

    def encoded(self) -> bytes:
        """The body as bytes; text is sent as it is, everything else as JSON."""
        if self.body is None:
            return b""
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


@dataclass(frozen=True, slots=True)
class _Route:
    """Where a request leads. ``verb`` is what faults are matched with."""

    kind: str
    verb: str
    parts: Mapping[str, str]

    @property
    def pool(self) -> str:
        return self.parts.get("pool", "").lower()


class Front:
    """Thread-safe; one per emulator."""

    def __init__(
        self, settings: Settings, *, clock: Clock, pools: AgentPools, tokens: Tokens, faults: FaultBook, log: Lines
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pools = pools
        self._tokens = tokens
        self._faults = faults
        self._log = log

    def answer(self, request: Request) -> Answer:
        """Answers and writes the exchange down. Never raises."""
        began = time.monotonic()
        route = _route(request)
        flags = self._flags(request, route)
        fault: Fault | None = None
        try:
            target: Target = "token" if route.kind in ("token", "machine token") else "arm"
            if target == "arm":
                self._tokens.check(request.headers.get("authorization"))
            fault = self._faults.take(target, method=route.verb, pool=route.pool)
            answer = self._faulty(request, route, fault or Fault())
        except Refusal as refusal:
            answer = Answer(refusal.status, refusal.body, refusal.headers)
        if answer.status == 200 and route.kind == "pool" and request.method == "PUT":
            flags.append("changes-a-pool")
        self._log.append(
            {
                "time": self._clock.text(),
                "wall": datetime.now(UTC).isoformat(),
                "method": request.method,
                "path": request.path,
                "query": request.query,
                "verb": route.verb,
                "pool": route.pool,
                "ifMatch": request.headers.get("if-match", ""),
                "ifNoneMatch": request.headers.get("if-none-match", ""),
                "userAgent": request.headers.get("user-agent", ""),
                "body": _loggable(request, route),
                "status": answer.status,
                "answer": _shortened(answer, route),
                "headers": dict(answer.headers),
                "cut": answer.cut,
                "fault": (fault.name or fault.id) if fault else "",
                "flags": flags,
                "seconds": round(time.monotonic() - began, 4),
            }
        )
        return answer

    def _faulty(self, request: Request, route: _Route, fault: Fault) -> Answer:
        if fault.delay:
            time.sleep(fault.delay)
        if fault.cut == "before":
            return Answer(0, cut=True)
        if fault.answers:
            return Answer(fault.status, fault.text or fault.body, fault.headers)
        answer = self._handle(request, route, fault)
        return Answer(answer.status, answer.body, answer.headers, cut=True) if fault.cut == "after" else answer

    def _handle(self, request: Request, route: _Route, fault: Fault) -> Answer:
        if route.kind == "token":
            form = dict(parse_qsl(request.body.decode(errors="replace")))
            return Answer(200, self._tokens.issue(route.parts["tenant"], form, lifetime=fault.lifetime))
        if route.kind == "machine token":
            metadata = request.headers.get("metadata", "")
            return Answer(200, self._tokens.issue_to_machine(request.query, metadata=metadata, lifetime=fault.lifetime))
        if route.kind == "unknown":
            raise arm_error(404, "InvalidResourceType", f"The resource at '{request.path}' could not be found.")
        self._check_api_version(request)
        self._check_scope(route)
        if route.kind == "operation":
            return self._operation(request, route)
        if route.kind == "cluster" and request.method in ("GET", "HEAD"):
            return Answer(200, self._cluster())
        if route.kind == "pools" and request.method == "GET":
            return self._list(request, fault)
        if route.kind == "abort" and request.method == "POST":
            pool, operation = self._pools.abort(route.pool)
            return Answer(202, None, self._links(request, operation))
        if route.kind == "upgradenodeimageversion" and request.method == "POST":
            pool, operation = self._pools.upgrade(route.pool, failure=_failure(fault))
            return Answer(202, pool.body(self._settings), self._links(request, operation))
        if route.kind == "pool" and request.method in ("GET", "HEAD"):
            pool = self._pools.get(route.pool)
            return Answer(200, pool.body(self._settings), {"ETag": f'"{pool.etag}"'})
        if route.kind == "pool" and request.method == "PUT":
            return self._put(request, route, fault)
        if route.kind == "pool" and request.method == "DELETE":
            if_match = request.headers.get("if-match", "")
            deleted = self._pools.delete(route.pool, if_match=if_match, failure=_failure(fault))
            return Answer(204) if deleted is None else Answer(202, None, self._links(request, deleted[1]))
        raise arm_error(405, "MethodNotAllowed", f"The method {request.method} is not allowed here.")

    def _put(self, request: Request, route: _Route, fault: Fault) -> Answer:
        try:
            body = json.loads(request.body)
        except ValueError as error:
            raise aks_error(400, "InvalidRequestContent", f"The request content is not valid JSON: {error}") from error
        created, pool, operation = self._pools.put(
            route.parts["pool"],
            body,
            if_match=request.headers.get("if-match", ""),
            if_none_match=request.headers.get("if-none-match", ""),
            failure=_failure(fault),
        )
        headers = {**self._links(request, operation), "ETag": f'"{pool.etag}"'}
        headers.pop("Location")
        return Answer(201 if created else 200, pool.body(self._settings), headers)

    def _list(self, request: Request, fault: Fault) -> Answer:
        pools = sorted(self._pools.listing(stale=fault.stale), key=lambda pool: pool.name)
        pools = [pool for pool in pools if not any(fnmatch.fnmatchcase(pool.name, hidden) for hidden in fault.omit)]
        after = request.query.get("$skiptoken", "")
        rest = [pool for pool in pools if pool.name > after]
        page = rest[: self._settings.page_size]
        body: dict[str, Any] = {"value": [pool.body(self._settings) for pool in page]}
        if len(page) < len(rest):
            version = quote(request.query["api-version"])
            body["nextLink"] = f"{request.base}{request.path}?api-version={version}&$skipToken={page[-1].name}"
        return Answer(200, body)

    def _operation(self, request: Request, route: _Route) -> Answer:
        operation = self._pools.operation(route.parts["id"])
        if route.parts["form"].lower() == "operations":
            return Answer(200, operation.body())
        if operation.ended is None:
            return Answer(202, None, {"Location": f"{request.base}{request.target}"})
        if operation.kind not in ("delete", "abort") and operation.status == SUCCEEDED:
            return Answer(200, self._pools.get(operation.pool).body(self._settings))
        return Answer(204)

    def _cluster(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "id": settings.cluster_path.replace("/resourceGroups/", "/resourcegroups/"),
            "name": settings.cluster,
            "type": "Microsoft.ContainerService/ManagedClusters",
            "location": settings.location,
            "properties": {
                "provisioningState": "Succeeded",
                "powerState": {"code": "Running"},
                "maxAgentPools": self._pools.limits.pools,
                "kubernetesVersion": settings.kubernetes_version,
                "currentKubernetesVersion": settings.kubernetes_version,
                "dnsPrefix": settings.cluster,
                "nodeResourceGroup": settings.node_resource_group,
                "enableRBAC": True,
                "agentPoolProfiles": [
                    _system_pool(settings),
                    *({"name": pool.name, **pool.body(settings)["properties"]} for pool in self._pools.listing()),
                ],
            },
        }

    def _check_api_version(self, request: Request) -> None:
        version = request.query.get("api-version", "")
        if not version:
            message = "The api-version query parameter (?api-version=) is required for all requests."
            raise arm_error(400, "MissingApiVersionParameter", message)
        if not _API_VERSION.fullmatch(version):
            message = f"The api-version '{version}' is invalid. The supported versions are in the form of YYYY-MM-DD."
            raise arm_error(400, "InvalidApiVersionParameter", message)

    def _check_scope(self, route: _Route) -> None:
        settings, parts = self._settings, route.parts
        if parts["subscription"].lower() != settings.subscription.lower():
            message = f"The subscription '{parts['subscription']}' could not be found."
            raise arm_error(404, "SubscriptionNotFound", message)
        if route.kind == "operation":
            if parts["location"].lower() != settings.location.lower():
                message = f"No registered resource provider found for location '{parts['location']}'."
                raise arm_error(400, "NoRegisteredProviderFound", message)
            return
        if parts["group"].lower() != settings.resource_group.lower():
            raise arm_error(404, "ResourceGroupNotFound", f"Resource group '{parts['group']}' could not be found.")
        if parts["cluster"].lower() != settings.cluster.lower():
            message = (
                f"The Resource 'Microsoft.ContainerService/managedClusters/{parts['cluster']}' under resource group "
                f"'{parts['group']}' was not found."
            )
            raise arm_error(404, "ResourceNotFound", message)

    def _links(self, request: Request, operation: Operation) -> dict[str, str]:
        """Where the operation can be followed; AKS sends no Retry-After."""
        base = (
            f"{request.base}/subscriptions/{self._settings.subscription}/providers/Microsoft.ContainerService"
            f"/locations/{self._settings.location}"
        )
        query = f"api-version={quote(request.query['api-version'])}"
        return {
            "Azure-AsyncOperation": f"{base}/operations/{operation.id}?{query}",
            "Location": f"{base}/operationresults/{operation.id}?{query}",
        }

    def _flags(self, request: Request, route: _Route) -> list[str]:
        """What a careful provisioner never does."""
        flags = []
        if route.kind == "pool" and request.method == "PUT" and request.headers.get("if-none-match", "").strip() != "*":
            flags.append("no-if-none-match")
        if route.kind == "pool" and request.method == "DELETE":
            pool = next((pool for pool in self._pools.listing() if pool.name == route.pool), None)
            if pool is not None and not _is_provisioned(pool):
                flags.append("foreign-pool")
        return flags


def _system_pool(settings: Settings) -> dict[str, Any]:
    profile = {
        "name": SYSTEM_POOL,
        "mode": "System",
        "count": 1,
        "vmSize": "Standard_D4s_v5",
        "osType": "Linux",
        "osSKU": "Ubuntu",
        "type": "VirtualMachineScaleSets",
        "provisioningState": SUCCEEDED,
        "powerState": {"code": "Running"},
    }
    subnets = {"vnetSubnetID": settings.subnet, "podSubnetID": settings.pod_subnet}
    return profile | {name: subnet for name, subnet in subnets.items() if subnet}


def _route(request: Request) -> _Route:
    path, method = request.path, request.method
    if match := _TOKEN.fullmatch(path):
        return _Route("token", "TOKEN", match.groupdict())
    if path.lower() == _MACHINE_TOKEN and method == "GET":
        return _Route("machine token", "TOKEN", {})
    if match := _OPERATION.fullmatch(path):
        return _Route("operation", "POLL", match.groupdict())
    if match := _CLUSTER.fullmatch(path):
        parts = match.groupdict(default="")
        rest = parts.pop("rest")
        if not rest.strip("/"):
            return _Route("cluster", "CLUSTER", parts)
        if _POOLS.fullmatch(rest):
            return _Route("pools", "LIST", parts)
        if pool := _POOL.fullmatch(rest):
            kind = (pool["action"] or "pool").lower()
            return _Route(kind, method, {**parts, "pool": pool["pool"]})
    return _Route("unknown", method, {})


def _failure(fault: Fault) -> Failure | None:
    return None if fault.error is None else Failure(fault.error, canceled=fault.canceled)


def _is_provisioned(pool: Pool) -> bool:
    """Whether a GPU provisioner made the pool: ours, or upstream's."""
    labels = pool.labels
    if labels.get(CLAIM_UID_LABEL):
        return True
    owned = any(key in labels for key in _UPSTREAM_OWNERS) and any(key in labels for key in _UPSTREAM_USERS)
    return owned and "kaito.sh/machine-type" in labels


def _loggable(request: Request, route: _Route) -> Any:
    if not request.body:
        return None
    if route.kind == "token":
        secret = ("client_assertion", "client_secret")
        return {key: value for key, value in parse_qsl(request.body.decode(errors="replace")) if key not in secret}
    try:
        return json.loads(request.body)
    except ValueError:
        return request.body[:1000].decode(errors="replace")


def _shortened(answer: Answer, route: _Route) -> Any:
    """The answer for the log: no token, and of a list only names and states."""
    if route.kind in ("token", "machine token") and answer.status == 200:
        return {key: value for key, value in answer.body.items() if key != "access_token"}
    if route.kind == "pools" and answer.status == 200 and isinstance(answer.body, dict):
        return {pool["name"]: pool["properties"]["provisioningState"] for pool in answer.body.get("value", [])}
    return answer.body
