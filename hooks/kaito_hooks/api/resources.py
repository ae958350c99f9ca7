"""What the API calls everything that our processes read or write, once: group, version, plural, kind and scope."""

from __future__ import annotations

from typing import NamedTuple


class ApiResource(NamedTuple):
    """``group`` is "" for the core group, ``plural`` is the name in paths and in RBAC rules."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """As in ``apiVersion``."""
        return f"{self.group}/{self.version}" if self.group else self.version


WORKSPACE = ApiResource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)
CATALOG = ApiResource("kaito.sh", "v1alpha1", "catalogs", "Catalog", False)
MACHINE = ApiResource("karpenter.sh", "v1alpha5", "machines", "Machine", False)
NODE_CLAIM = ApiResource("karpenter.sh", "v1", "nodeclaims", "NodeClaim", False)

NAMESPACE = ApiResource("", "v1", "namespaces", "Namespace", False)
NODE = ApiResource("", "v1", "nodes", "Node", False)
POD = ApiResource("", "v1", "pods", "Pod", True)
EVENT = ApiResource("", "v1", "events", "Event", True)
SERVICE = ApiResource("", "v1", "services", "Service", True)
CONFIG_MAP = ApiResource("", "v1", "configmaps", "ConfigMap", True)
PERSISTENT_VOLUME_CLAIM = ApiResource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", True)
DEPLOYMENT = ApiResource("apps", "v1", "deployments", "Deployment", True)
STATEFUL_SET = ApiResource("apps", "v1", "statefulsets", "StatefulSet", True)
DAEMON_SET = ApiResource("apps", "v1", "daemonsets", "DaemonSet", True)
CONTROLLER_REVISION = ApiResource("apps", "v1", "controllerrevisions", "ControllerRevision", True)
JOB = ApiResource("batch", "v1", "jobs", "Job", True)
NETWORK_POLICY = ApiResource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", True)
VOLUME_ATTACHMENT = ApiResource("storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment", False)
CUSTOM_RESOURCE_DEFINITION = ApiResource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False
)
ADMISSION_POLICY = ApiResource(
    "admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False
)
