"""The API resources that this controller reads or writes."""

from __future__ import annotations

from kaito_hooks.api import resources
from kaito_hooks.runtime import Resource

WORKSPACE = Resource(*resources.WORKSPACE)
CATALOG = Resource(*resources.CATALOG)
MACHINE = Resource(*resources.MACHINE)
NODE_CLAIM = Resource(*resources.NODE_CLAIM)
NODE = Resource(*resources.NODE)
POD = Resource(*resources.POD)
EVENT = Resource(*resources.EVENT)
SERVICE = Resource(*resources.SERVICE)
CONFIG_MAP = Resource(*resources.CONFIG_MAP)
DEPLOYMENT = Resource(*resources.DEPLOYMENT)
STATEFUL_SET = Resource(*resources.STATEFUL_SET)
CONTROLLER_REVISION = Resource(*resources.CONTROLLER_REVISION)
JOB = Resource(*resources.JOB)
NETWORK_POLICY = Resource(*resources.NETWORK_POLICY)

CLAIM_RESOURCES = {resource.kind: resource for resource in (MACHINE, NODE_CLAIM)}
CHILD_RESOURCES = {
    resource.kind: resource
    for resource in (DEPLOYMENT, STATEFUL_SET, SERVICE, NETWORK_POLICY, JOB, CONTROLLER_REVISION)
}
