"""The unmodified Azure SDK, pointed at an emulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from azure.identity import WorkloadIdentityCredential
from azure.mgmt.containerservice import ContainerServiceClient
from azure.mgmt.containerservice.models import AgentPool

from kaito_local.aks import Emulator

GPU_SIZE = "Standard_NC6s_v3"


def credential(cloud: Emulator, folder: Path, **changed: Any) -> WorkloadIdentityCredential:
    token_file = folder / "federated-token"
    token_file.write_text("a service account token")
    identity = cloud.settings.identity
    return WorkloadIdentityCredential(
        **{
            "tenant_id": identity.tenant,
            "client_id": identity.client,
            "token_file_path": str(token_file),
            "authority": cloud.endpoints.arm,
            "connection_verify": str(cloud.endpoints.authority),
            "retry_total": 0,
            **changed,
        }
    )


def sdk(cloud: Emulator, folder: Path, **changed: Any) -> ContainerServiceClient:
    return ContainerServiceClient(
        **{
            "credential": credential(cloud, folder),
            "subscription_id": cloud.settings.subscription,
            "base_url": cloud.endpoints.arm,
            "credential_scopes": ["https://management.azure.com/.default"],
            "connection_verify": str(cloud.endpoints.authority),
            "retry_total": 0,
            "polling_interval": 0.05,
            **changed,
        }
    )


def gpu_pool(**changed: Any) -> AgentPool:
    return AgentPool(
        **{
            "count": 1,
            "vm_size": GPU_SIZE,
            "os_type": "Linux",
            "type_properties_type": "VirtualMachineScaleSets",
            "node_labels": {"kaito.sh/claim-uid": "uid-1", "kaito.sh/workspace": "phi"},
            "node_taints": ["sku=gpu:NoSchedule"],
            **changed,
        }
    )
