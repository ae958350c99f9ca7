"""The CloudProvider: AKS agent pools through azure-mgmt-containerservice.

Every call is one request or two and never polls: what became of a pool is read from its own state later. Conditional
writes (If-None-Match on PUT, If-Match on DELETE) make "look, then write" one step for ARM, whoever else writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError
from azure.mgmt.containerservice import ContainerServiceClient
from azure.mgmt.containerservice.models import AgentPool, ManagedCluster

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner.azure import errors
from kaito_hooks.provisioner.azure.agent_pool import DEFAULT_IMAGE_FAMILY, TIMESTAMP_FORMAT, agent_pool, order
from kaito_hooks.provisioner.azure.errors import Refusal
from kaito_hooks.provisioner.azure.listing import SharedListing
from kaito_hooks.provisioner.cloud import Instance, Order, State
from kaito_hooks.provisioner.errors import (
    CloudError,
    InstanceChanged,
    InvalidRequest,
    LaunchFailed,
    OperationInProgress,
    PoolNameConflict,
)
from kaito_hooks.provisioner.metrics import ProvisionerMetrics
from kaito_hooks.runtime import Clock

PROVIDER = "azure"
_STATES = {state.value.lower(): state for state in State} | {"upgradingnodeimageversion": State.UPGRADING}
_UNREADABLE = (ValueError, TypeError, AttributeError, RecursionError)
"""What the SDK raises where a body is not of the type that it expects."""
# Azure's cloud provider for Kubernetes writes azure:// and the resource id of the virtual machine.
_MACHINE = re.compile(r"azure:///subscriptions/[^/]+/resourcegroups/[^/]+/", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a cluster's machines lie. ``subnets``: its system pool's, as keyword arguments of the SDK's model; without
    one AKS made it, and no pool may name it."""

    provider_id_prefix: str
    subnets: Mapping[str, str]


class AgentPools:
    """CloudProvider over the agent pools of one cluster.

    ``location`` is its region; "" = not known. ``fields``: what every pool has besides what its claim asks for, as
    keyword arguments of the SDK's model; without the nodes' subnet among them both subnets are those of the
    cluster's system pool.
    """

    def __init__(
        self,
        client: ContainerServiceClient,
        *,
        resource_group: str,
        cluster: str,
        location: str,
        clock: Clock,
        metrics: ProvisionerMetrics,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        self._pools = client.agent_pools
        self._clusters = client.managed_clusters
        self._resource_group = resource_group
        self._cluster = cluster
        self._location = location
        self._clock = clock
        self._metrics = metrics
        self._fields = dict(fields or {})
        self._place: _Place | None = None
        self._listing = SharedListing(self._fetch, clock)

    @property
    def node_label(self) -> str:
        """AKS names the pool in this label of its Nodes."""
        return labels.AGENT_POOL

    def provider_id_prefix(self) -> str:
        """GET of the cluster: the node resource group, in the cluster's own subscription."""
        return self._look_at_cluster().provider_id_prefix

    def is_machine(self, provider_id: str) -> bool:
        """Whether it names a subscription and a resource group."""
        return _MACHINE.match(provider_id) is not None

    def order(self, claim: Claim, now: datetime) -> Order:
        """As `azure.agent_pool.order`."""
        return order(claim, now, image_family=self._fields.get("os_sku", DEFAULT_IMAGE_FAMILY))

    def ensure(self, order: Order) -> Instance:
        """GET, and PUT with If-None-Match if there was nothing. InvalidRequest for a zone of another region.

        The cluster is looked at once, and again after a refusal: its system pool may have moved.
        """
        _check_region(order, self._location)
        found = self._get(order.name)
        if found is not None:
            return found
        body = agent_pool(order, fields=self._pool_fields())
        self._listing.wrote(order.name, None)
        try:
            with self._calling("Create"):
                poller = self._pools.begin_create_or_update(
                    self._resource_group,
                    self._cluster,
                    order.name,
                    body,
                    match_condition=MatchConditions.IfMissing,
                    polling=False,
                )
                created = _named(order.name, poller.result())
        except InstanceChanged:
            # Somebody was faster, or an answer of ours was lost: either way, what is there now is the truth.
            found = self._get(order.name)
            if found is None:
                raise
            return found
        except InvalidRequest:
            self._place = None
            raise
        self._listing.wrote(order.name, created)
        return created

    def get(self, name: str, *, max_age: float = 0.0) -> Instance | None:
        """GET, or the shared listing."""
        if max_age > 0:
            known, found = self._listing.look(name, max_age=max_age)
            if known:
                return found
        return self._get(name)

    def list(self) -> Sequence[Instance]:
        """LIST, all pages."""
        asked = self._clock.monotonic()
        found = self._fetch()
        self._listing.took(asked, found)
        return found

    def delete(self, instance: Instance) -> None:
        """DELETE with the ETag that the caller's look returned."""
        if not instance.ours:
            raise PoolNameConflict("PoolNameConflict", f"agent pool {instance.name} is not ours to delete")
        self._listing.wrote(instance.name, None)
        with self._calling("Delete", missing_is_fine=True):
            self._pools.begin_delete(
                self._resource_group,
                self._cluster,
                instance.name,
                # The drain is over, with budgets kept or overruled by a deadline: AKS need not begin another one.
                ignore_pod_disruption_budget=True,
                etag=instance.etag or None,
                match_condition=MatchConditions.IfNotModified if instance.etag else None,
                polling=False,
            )
        self._listing.wrote(instance.name, replace(instance, state=State.DELETING))

    def _pool_fields(self) -> Mapping[str, Any]:
        if "vnet_subnet_id" in self._fields:
            return self._fields
        place = self._place or self._look_at_cluster()
        return {**place.subnets, **self._fields}

    def _look_at_cluster(self) -> _Place:
        with self._calling("GetCluster"):
            cluster = self._clusters.get(self._resource_group, self._cluster)
        group, path = cluster.node_resource_group, (cluster.id or "").split("/")
        if len(path) < 3 or not group:
            raise LaunchFailed("", f"ARM does not say in which resource group the machines of {self._cluster} lie")
        subscription = path[2]
        self._place = _Place(
            provider_id_prefix=f"azure:///subscriptions/{subscription}/resourceGroups/{group}/",
            subnets=_subnets(cluster),
        )
        return self._place

    def _get(self, name: str) -> Instance | None:
        with self._calling("Get", missing_is_fine=True):
            return _named(name, self._pools.get(self._resource_group, self._cluster, name))
        return None

    def _fetch(self) -> Sequence[Instance]:
        with self._calling("List"):
            return [instance(pool) for pool in self._pools.list(self._resource_group, self._cluster)]

    @contextmanager
    def _calling(self, method: str, *, missing_is_fine: bool = False) -> Iterator[None]:
        """Measures a call and turns what it raises into a CloudError."""
        began = self._clock.monotonic()
        try:
            yield
        except (AzureError, CloudError) as error:
            if missing_is_fine and errors.is_missing_instance(error):
                return
            refused = errors.from_sdk(error, self._clock.now())
            if isinstance(error, HttpResponseError) and error.status_code == 412:
                refused = InstanceChanged(refused.code, refused.text)
            self._metrics.cloud_errors.labels(method, PROVIDER, refused.reason).inc()
            raise refused from error
        except _UNREADABLE as error:
            refused = errors.unreadable(error)
            self._metrics.cloud_errors.labels(method, PROVIDER, refused.reason).inc()
            raise refused from error
        finally:
            self._metrics.cloud_duration.labels(method, PROVIDER).observe(self._clock.monotonic() - began)


def _subnets(cluster: ManagedCluster) -> Mapping[str, str]:
    """Of the nodes and, where they have one of their own, of the Pods."""
    system = [pool for pool in cluster.agent_pool_profiles or () if (pool.mode or "").lower() == "system"]
    pool = next((pool for pool in system if pool.vnet_subnet_id), None)
    if pool is None or not pool.vnet_subnet_id:
        return {}
    pods = {"pod_subnet_id": pool.pod_subnet_id} if pool.pod_subnet_id else {}
    return {"vnet_subnet_id": pool.vnet_subnet_id, **pods}


def _check_region(order: Order, location: str) -> None:
    """ARM takes a zone's number alone, and would take that of another region for one of its own."""
    regions = {zone.rpartition("-")[0] for zone in order.zones} | ({order.region} if order.region else set())
    for region in sorted(regions):
        if location and region.lower() != location.replace(" ", "").lower():
            raise InvalidRequest("InvalidClaim", f"region {region} is asked for, but the cluster is in {location}")


def _named(name: str, pool: AgentPool) -> Instance:
    """What ARM says about the pool of that name; ValueError if it says it about none, or about another one."""
    found = instance(pool)
    if found.name.lower() != name:
        raise ValueError(f"agent pool {name} was asked for, and {found.name or 'none'} is told of")
    return found


def instance(pool: AgentPool) -> Instance:
    """What ARM says about a pool."""
    state = _STATES.get((pool.provisioning_state or "").lower(), State.OTHER)
    found: dict[str, str] = dict(pool.node_labels or {})
    return Instance(
        name=pool.name or "",
        state=state,
        labels=found,
        etag=pool.e_tag or "",
        created=_created(found.get(labels.CREATION_TIMESTAMP)),
        error=_provisioning_error(pool, state) if state.broken else None,
    )


def _provisioning_error(pool: AgentPool, state: State) -> CloudError | None:
    error = pool.status.provisioning_error if pool.status else None
    found = Refusal.of(None, error.as_dict() if error else {})
    if state is State.CANCELED:
        # Somebody else's operation went first; nothing is wrong with the order.
        return OperationInProgress(found.code or state.value, found.message or "the creation was canceled")
    return errors.classify(found) if found.code or found.message else None


def _created(text: str | None) -> datetime | None:
    try:
        return datetime.strptime(text, TIMESTAMP_FORMAT).replace(tzinfo=UTC) if text else None
    except ValueError:
        return None
