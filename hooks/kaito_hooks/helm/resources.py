"""The API resources that hooks read or write."""

from __future__ import annotations

from kaito_hooks.api import resources
from kaito_hooks.runtime import Resource

CUSTOM_RESOURCE_DEFINITION = Resource(*resources.CUSTOM_RESOURCE_DEFINITION)
POLICY = Resource(*resources.ADMISSION_POLICY)
WORKSPACE = Resource(*resources.WORKSPACE)
CATALOG = Resource(*resources.CATALOG)
MACHINE = Resource(*resources.MACHINE)
NODE_CLAIM = Resource(*resources.NODE_CLAIM)
NODE = Resource(*resources.NODE)
NAMESPACE = Resource(*resources.NAMESPACE)
DAEMON_SET = Resource(*resources.DAEMON_SET)
