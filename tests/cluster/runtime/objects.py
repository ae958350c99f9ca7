"""The resources and objects that the runtime's tests write."""

from __future__ import annotations

from kaito_hooks.runtime import Obj, Resource

CONFIG_MAP = Resource(group="", version="v1", plural="configmaps", kind="ConfigMap", namespaced=True)
EVENT = Resource(group="", version="v1", plural="events", kind="Event", namespaced=True)
LEASE = Resource(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease", namespaced=True)
POD = Resource(group="", version="v1", plural="pods", kind="Pod", namespaced=True)
CRD = Resource(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    namespaced=False,
)


def config_map(namespace: str, name: str, **data: str) -> Obj:
    """A ConfigMap."""
    return {"metadata": {"namespace": namespace, "name": name}, "data": data}


def widget_definition(group: str) -> Obj:
    """A CustomResourceDefinition of Widgets with a status subresource."""
    schema = {
        "type": "object",
        "properties": {
            "spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}},
            "status": {"type": "object", "properties": {"phase": {"type": "string"}}},
        },
    }
    return {
        "metadata": {"name": f"widgets.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }
