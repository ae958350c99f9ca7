"""Labels, annotations, finalizers and taints that KAITO, Karpenter and AKS agree on."""

from __future__ import annotations

from collections.abc import Mapping

WORKSPACE_FINALIZER = "workspace.finalizer.kaito.sh"

WORKSPACE = "kaito.sh/workspace"
WORKSPACE_NAMESPACE = "kaito.sh/workspacenamespace"
RAG_ENGINE = "kaito.sh/ragengine"
MACHINE_TYPE = "kaito.sh/machine-type"
CREATION_TIMESTAMP = "kaito.sh/creation-timestamp"
CLAIM_UID = "kaito.sh/claim-uid"
NODE_IMAGE_FAMILY = "kaito.sh/node-image-family"
FITTING_INSTANCE_TYPES = "kaito.sh/fitting-instance-types"
POOL_SUCCEEDED_AT = "kaito.sh/pool-succeeded-at"
ENABLE_LOAD_BALANCER = "kaito.sh/enablelb"
RUNTIME = "kaito.sh/runtime"
TOLERATIONS = "kaito.sh/tolerations"
ROLL = "kaito.sh/roll"
TUNING_CHECK = "kaito.sh/tuning-check"
TUNING_GATE = "kaito.sh/tuning-gate"
OFF = "off"
WORKSPACE_ANNOTATIONS = (ENABLE_LOAD_BALANCER, ROLL, RUNTIME, TOLERATIONS, TUNING_CHECK, TUNING_GATE)
"""What users may write on a Workspace, and the controller reads."""

REVISION_HASH = "workspace.kaito.io/hash"
REVISION = "workspace.kaito.io/revision"
REVISION_NAME = "workspace.kaito.io/name"
WORKLOAD_HASH = "workspace.kaito.io/workload-hash"
AUTOMATIC_ROLL = "workspace.kaito.io/roll"
ROLLS = (ROLL, AUTOMATIC_ROLL)
TUNING_HASH = "workspace.kaito.io/tuning-hash"
TUNING_REVISION = "workspace.kaito.io/tuning-revision"
CHECK_INPUTS = "workspace.kaito.io/check-inputs"
CHECK_CONFIG = "workspace.kaito.io/check-config"

ACCELERATOR = "accelerator"
ACCELERATOR_NVIDIA = "nvidia"
GPU_RESOURCE = "nvidia.com/gpu"
GPU_PRODUCT = "nvidia.com/gpu.product"
GPU_MEMORY = "nvidia.com/gpu.memory"
GPU_COUNT = "nvidia.com/gpu.count"
SKU = "sku"
SKU_GPU = "gpu"
SPOT_TAINT = "kubernetes.azure.com/scalesetpriority"

TERMINATION_FINALIZER = "karpenter.sh/termination"
NODE_POOL = "karpenter.sh/nodepool"
NODE_POOL_KAITO = "kaito"
PROVISIONER_NAME = "karpenter.sh/provisioner-name"
PROVISIONER_DEFAULT = "default"
REGISTERED = "karpenter.sh/registered"
INITIALIZED = "karpenter.sh/initialized"
CAPACITY_TYPE = "karpenter.sh/capacity-type"
DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
DO_NOT_SYNC_TAINTS = "karpenter.sh/do-not-sync-taints"
TERMINATION_TIMESTAMP = "karpenter.sh/nodeclaim-termination-timestamp"
UNREGISTERED_TAINT = "karpenter.sh/unregistered"
DISRUPTED_TAINT = "karpenter.sh/disrupted"

POD_INDEX = "apps.kubernetes.io/pod-index"

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
ARCHITECTURE = "kubernetes.io/arch"
OPERATING_SYSTEM = "kubernetes.io/os"
HOSTNAME = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
REGION = "topology.kubernetes.io/region"
EXCLUDE_FROM_LOAD_BALANCERS = "node.kubernetes.io/exclude-from-external-load-balancers"
NOT_READY_TAINT = "node.kubernetes.io/not-ready"
UNREACHABLE_TAINT = "node.kubernetes.io/unreachable"
UNINITIALIZED_TAINT = "node.cloudprovider.kubernetes.io/uninitialized"

AGENT_POOL = "agentpool"
AZURE_SKU_NAME = "karpenter.azure.com/sku-name"
AWS_GPU_COUNT = "karpenter.k8s.aws/instance-gpu-count"

DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


def is_off(annotations: Mapping[str, str], name: str) -> bool:
    """Whether the user has turned off what the annotation is about; its value may have capitals."""
    return annotations.get(name, "").strip().lower() == OFF
