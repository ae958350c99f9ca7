"""The Kubernetes resources that the provisioner reads and writes."""

from __future__ import annotations

from kaito_hooks.api import resources
from kaito_hooks.runtime import Resource

MACHINE = Resource(*resources.MACHINE)
NODE_CLAIM = Resource(*resources.NODE_CLAIM)
NODE = Resource(*resources.NODE)
POD = Resource(*resources.POD)
PERSISTENT_VOLUME_CLAIM = Resource(*resources.PERSISTENT_VOLUME_CLAIM)
VOLUME_ATTACHMENT = Resource(*resources.VOLUME_ATTACHMENT)

CLAIMS = {resource.kind: resource for resource in (MACHINE, NODE_CLAIM)}
