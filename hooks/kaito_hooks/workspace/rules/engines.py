"""Which engine serves a Workspace's preset."""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import ENGINES, Catalog, Engine
from kaito_hooks.api.workspace import Workspace


def chosen(workspace: Workspace) -> Engine | None:
    """What the annotation kaito.sh/runtime asks for; None if there is none, or one that a rule refuses."""
    value = workspace.annotations.get(labels.RUNTIME)
    return next((engine for engine in ENGINES if engine == value), None)


def engine_of(workspace: Workspace, catalog: Catalog) -> Engine:
    """What serves the Workspace: the annotation's engine, else the Catalog's default."""
    return chosen(workspace) or catalog.default_engine


def serves(workspace: Workspace) -> bool:
    """Whether the Workspace serves a model, now or after its tuning."""
    return workspace.tuning is None or workspace.tuning.serve_result
