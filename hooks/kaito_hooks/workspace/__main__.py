"""``python -m kaito_hooks.workspace --config /etc/kaito/config.yaml``: the Workspace controller's process."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kaito_hooks.runtime import (
    Client,
    Controller,
    Manager,
    Metrics,
    SystemClock,
    configure_logging,
    run_until_signal,
)
from kaito_hooks.workspace.configuration import file
from kaito_hooks.workspace.configuration.errors import SettingsError
from kaito_hooks.workspace.configuration.settings import Process, Settings
from kaito_hooks.workspace.execute import Executor
from kaito_hooks.workspace.memory import Memories
from kaito_hooks.workspace.metrics import Census, WorkspaceMetrics
from kaito_hooks.workspace.observe import Observer
from kaito_hooks.workspace.reconcile import Reconciler
from kaito_hooks.workspace.rollout import ROLLOUT_PERIOD, Rollout
from kaito_hooks.workspace.status.poller import WORKERS, ProgressPoller
from kaito_hooks.workspace.world import World

USER_AGENT = "kaito-workspace"
EVENTS_GATHERED = 5.0
"""Seconds: steps of a Workspace that follow one another at once are one Event; those that take a node take minutes."""


def build(client: Client, settings: Settings, process: Process) -> Manager:
    """Wire the controller: caches, reconciler, queue, endpoints."""
    clock, memories, registry = SystemClock(), Memories(), Metrics()
    manager = Manager(
        client,
        name="workspace",
        identity=process.identity,
        leader_election=process.leader_election,
        health_port=process.health_port,
        metrics_port=process.metrics_port,
        bind_address=process.bind_address,
        registry=registry,
        clock=clock,
    )
    world = World.over(client, settings.node_api)
    census = Census(
        workspaces=world.workspaces.list,
        claims=lambda: [*world.machines.list(), *world.node_claims.list()],
        leading=lambda: manager.leading,
        clock=clock,
    )
    registry.registry.register(census)
    poller = ProgressPoller()
    observer = Observer(world, client=client, memories=memories, poller=poller, settings=settings, clock=clock)
    executor = Executor(
        manager.client,
        recorder=manager.recorder("kaito-workspace", gather=EVENTS_GATHERED),
        memories=memories,
        metrics=WorkspaceMetrics(registry.registry),
        clock=clock,
        refusal_pause=settings.timeouts.buy_backoff_min,
    )
    controller = Controller("workspace", reconcile=Reconciler(observer, executor), workers=settings.workers)
    polling = Controller("progress", reconcile=poller.poll, workers=WORKERS, resync=None)
    poller.connect(poll=polling.enqueue, tell=controller.enqueue)
    world.wire(controller, memories)
    world.workspaces.subscribe(lambda old, new: memories.forget(old["metadata"]["uid"]) if old and not new else None)
    manager.add_controller(controller)
    manager.add_controller(polling)
    if settings.workloads.upgrade == "rolling":
        rollout = Rollout(world, executor, settings=settings.workloads, clock=clock)
        manager.add_periodic("rollout", ROLLOUT_PERIOD, rollout.proceed)
    return manager


def main(argv: list[str] | None = None) -> int:
    """Run until a signal; the exit code of the process."""
    parser = argparse.ArgumentParser(prog="python -m kaito_hooks.workspace", description="The Workspace controller.")
    parser.add_argument("--config", type=Path, default=None, help="config.yaml; all defaults without it")
    parser.add_argument("--kubeconfig", default=None, help="instead of the Pod's service account")
    arguments = parser.parse_args(argv)
    try:
        settings, process = file.load(arguments.config, os.environ)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    configure_logging(process.log_level)
    client = Client.load(kubeconfig=arguments.kubeconfig, user_agent=USER_AGENT)
    return run_until_signal(build(client, settings, process))


if __name__ == "__main__":
    sys.exit(main())
