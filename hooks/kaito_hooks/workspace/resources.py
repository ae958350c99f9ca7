"""The API resources that this controller reads or writes."""

from __future__ import annotations

from kaito_hooks.runtime import Resource

WORKSPACE = Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)
CATALOG = Resource("kaito.sh", "v1alpha1", "catalogs", "Catalog", False)
MACHINE = Resource("karpenter.sh", "v1alpha5", "machines", "Machine", False)
NODE_CLAIM = Resource("karpenter.sh", "v1", "nodeclaims", "NodeClaim", False)
NODE = Resource("", "v1", "nodes", "Node", False)
POD = Resource("", "v1", "pods", "Pod", True)
EVENT = Resource("", "v1", "events", "Event", True)
SERVICE = Resource("", "v1", "services", "Service", True)
CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap", True)
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment", True)
STATEFUL_SET = Resource("apps", "v1", "statefulsets", "StatefulSet", True)
CONTROLLER_REVISION = Resource("apps", "v1", "controllerrevisions", "ControllerRevision", True)
JOB = Resource("batch", "v1", "jobs", "Job", True)
NETWORK_POLICY = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True)

CLAIM_RESOURCES = {resource.kind: resource for resource in (MACHINE, NODE_CLAIM)}
CHILD_RESOURCES = {
    resource.kind: resource
    for resource in (DEPLOYMENT, STATEFUL_SET, SERVICE, NETWORK_POLICY, JOB, CONTROLLER_REVISION)
}
