"""The process put together: informers, one controller per kind of claim, the sweeper, probes."""

from __future__ import annotations

import random

from kaito_hooks.api.claim import Claim
from kaito_hooks.api.version import VERSION
from kaito_hooks.provisioner import nodes, resources
from kaito_hooks.provisioner.azure.aks import AgentPools
from kaito_hooks.provisioner.azure.client import sdk_client, token_scope
from kaito_hooks.provisioner.azure.credentials import credential
from kaito_hooks.provisioner.azure.pool_fields import pool_fields
from kaito_hooks.provisioner.azure.throttle import Throttle
from kaito_hooks.provisioner.backoff import Backoff
from kaito_hooks.provisioner.claim_kind import ClaimKind
from kaito_hooks.provisioner.configuration import Configuration
from kaito_hooks.provisioner.lifecycle import Lifecycle
from kaito_hooks.provisioner.machine import Machine
from kaito_hooks.provisioner.metrics import ClaimCensus, ProvisionerMetrics
from kaito_hooks.provisioner.nodeclaim import NodeClaim
from kaito_hooks.provisioner.nodes import Nodes
from kaito_hooks.provisioner.own_cluster import OwnCluster
from kaito_hooks.provisioner.phases.collection import Collection
from kaito_hooks.provisioner.phases.drain import Drains
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.runtime import Client, Controller, Informer, Manager, Metrics, SystemClock

NAME = "gpu-provisioner"


def build(configuration: Configuration, client: Client) -> Manager:
    """A Manager that does everything; nothing is started. Raises ConfigurationInvalid."""
    clock = SystemClock()
    registry = Metrics()
    manager = Manager(
        client,
        name=NAME,
        identity=configuration.identity or None,
        leader_election=configuration.leader_election,
        health_port=configuration.health_port,
        metrics_port=configuration.metrics_port,
        bind_address=configuration.bind_address,
        registry=registry,
        clock=clock,
    )
    metrics = ProvisionerMetrics(registry.registry)
    metrics.build_info.labels(VERSION).set(1)
    metrics.leader.set_function(lambda: float(manager.leading))
    identity = credential(configuration.azure, clock)
    pools = AgentPools(
        sdk_client(
            configuration.azure,
            identity,
            throttle=Throttle(clock, manager.fence),
            metrics=metrics,
            clock=clock,
        ),
        resource_group=configuration.azure.resource_group,
        cluster=configuration.azure.cluster_name,
        location=configuration.azure.location,
        fields=pool_fields(configuration.azure.agent_pool),
        clock=clock,
        metrics=metrics,
    )
    cache = Informer(client, resources.NODE, indexes=nodes.indexes(pools.node_label), transform=nodes.slim)
    known = Nodes(cache)
    cloud = OwnCluster(pools, known)
    env = Environment(
        cloud=cloud,
        client=manager.client,
        nodes=known,
        clock=clock,
        events=manager.recorder(NAME),
        metrics=metrics,
        settings=configuration.settings,
        backoff=Backoff(clock, random.Random()),
        drains=Drains(),
    )
    settings = configuration.settings
    kinds: tuple[ClaimKind, ...] = (Machine(), NodeClaim(settings.node_class, settings.manage_by_label))
    claims = [(kind, _add_controller(manager, client, cache, kind, env, configuration)) for kind in kinds]
    registry.registry.register(
        ClaimCensus(
            lambda: [claim for kind, held in claims for claim in map(Claim.read, held.list()) if kind.manages(claim)],
            leading=lambda: manager.leading,
        )
    )
    collection = Collection(env, kinds, required=configuration.node_api)
    manager.add_periodic("collection", settings.gc_interval, collection.sweep)
    scope = token_scope(configuration.azure)
    manager.add_ready_check("credentials", lambda: identity.problem(scope))
    manager.add_ready_check("cluster", cloud.problem)
    return manager


def _add_controller(
    manager: Manager,
    client: Client,
    cache: Informer,
    kind: ClaimKind,
    env: Environment,
    configuration: Configuration,
) -> Informer:
    """The claims of that kind, with the controller that serves them.

    Both kinds are served while claims of theirs are held, so that a change of NODE_API strands nothing; only the
    chosen one takes new claims and must exist.
    """
    chosen = kind.encoding.kind == configuration.node_api
    claims = Informer(client, kind.resource, optional=True)
    controller = Controller(
        f"{kind.encoding.kind.lower()}.lifecycle",
        reconcile=Lifecycle(kind, env, claims.get, adopts=chosen).reconcile,
        workers=configuration.workers if chosen else 2,
        clock=env.clock,
    )
    controller.watch(claims)
    controller.watch(cache, lambda node: nodes.claim_keys(node, env.cloud.node_label))
    manager.add_controller(controller)
    if chosen:
        what = f"{kind.resource} is not served; are the CRDs of the chart gpu-provisioner installed?"
        manager.add_ready_check("claims", lambda: None if claims.served else what)
    return claims
