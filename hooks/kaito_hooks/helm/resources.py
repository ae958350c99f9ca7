"""The API resources that hooks read or write."""

from __future__ import annotations

from kaito_hooks.runtime import Resource

CUSTOM_RESOURCE_DEFINITION = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False
)
POLICY = Resource(
    "admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False
)
WORKSPACE = Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)
CATALOG = Resource("kaito.sh", "v1alpha1", "catalogs", "Catalog", False)
MACHINE = Resource("karpenter.sh", "v1alpha5", "machines", "Machine", False)
NODE_CLAIM = Resource("karpenter.sh", "v1", "nodeclaims", "NodeClaim", False)
NODE = Resource("", "v1", "nodes", "Node", False)
