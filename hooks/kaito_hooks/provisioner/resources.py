"""The Kubernetes resources that the provisioner reads and writes."""

from __future__ import annotations

from kaito_hooks.api import claim
from kaito_hooks.runtime import Resource

MACHINE = Resource(claim.GROUP, claim.MACHINE.version, claim.MACHINE.plural, claim.MACHINE.kind, namespaced=False)
NODE_CLAIM = Resource(
    claim.GROUP, claim.NODE_CLAIM.version, claim.NODE_CLAIM.plural, claim.NODE_CLAIM.kind, namespaced=False
)
NODE = Resource("", "v1", "nodes", "Node", namespaced=False)
POD = Resource("", "v1", "pods", "Pod", namespaced=True)
PERSISTENT_VOLUME_CLAIM = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", namespaced=True)
VOLUME_ATTACHMENT = Resource("storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment", namespaced=False)

CLAIMS = {resource.kind: resource for resource in (MACHINE, NODE_CLAIM)}
