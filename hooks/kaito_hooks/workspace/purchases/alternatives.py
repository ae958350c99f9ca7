"""Other instance types that would hold what a Workspace runs: for whoever reads that the chosen one cannot be had.

The provisioner knows no presets, so the answer travels with the claim, in an annotation that it repeats when the cloud
refuses the type.
"""

from __future__ import annotations

import re

from kaito_hooks.api.catalog import Catalog, InstanceType, fits, fits_tuning
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.rules.engines import engine_of, serves

MOST = 5
"""How many are named."""

_AZURE = re.compile(r"(standard_[a-z]+)\d+([a-z]*)(.*)")
"""Family, features and the rest of a name, in small letters."""


def alternatives(workspace: Workspace, catalog: Catalog | None) -> tuple[str, ...]:
    """Names from the Catalog, the best first: the cheapest, then those without a price from the smallest up.

    Of each other series of machines there is one, and none of the refused type's own: a series shares a quota, and most
    often a shortage. None for a template, whose needs nobody knows.
    """
    if catalog is None or workspace.resource is None:
        return ()
    asked = workspace.resource.instance_type
    listed = catalog.find_instance_type(asked) or InstanceType(asked)
    own, found = _series(asked), dict[str, str]()
    for other in sorted(catalog.on_sale.values(), key=_worth):
        if (
            _series(other.name) != own
            and (other.gpu_vendor, other.architecture) == (listed.gpu_vendor, listed.architecture)
            and holds(workspace, catalog, other)
        ):
            found.setdefault(_series(other.name), other.name)
    return tuple(found.values())[:MOST]


def holds(workspace: Workspace, catalog: Catalog, other: InstanceType) -> bool:
    """Whether the rules of admission would let the Workspace have that type."""
    preset = catalog.presets.get(workspace.preset.name) if workspace.preset else None
    if preset is None or workspace.resource is None:
        return False
    if serves(workspace) and not other.runs(engine_of(workspace, catalog)):
        return False
    if workspace.tuning is not None:
        needs = preset.tuning.get(workspace.tuning.method)
        return needs is not None and fits_tuning(needs, other) is None
    return fits(preset, other, count=workspace.resource.count) is None


def _worth(instance_type: InstanceType) -> tuple[bool, float, int, int, int, str]:
    price, name = instance_type.price_per_hour, instance_type.name
    # With the same GPUs the shorter name has fewer cores: NC4as before NC16as, g5.xlarge before g5.2xlarge.
    return (
        price is None,
        price or 0.0,
        instance_type.gpu_count,
        instance_type.total_gpu_memory_gib,
        len(name),
        name,
    )


def _series(name: str) -> str:
    """The name without its size: ``Standard_NC6s_v3`` is of ``standard_ncs_v3``, ``g5.4xlarge`` of ``g5``.

    On Azure a size that is isolated (i), has RDMA (r) or more memory (m) is of the series; but ND with more memory is
    one of its own. https://learn.microsoft.com/azure/virtual-machines/vm-naming-conventions
    """
    azure = _AZURE.fullmatch(name.lower())
    if azure is None:
        return name.partition(".")[0].lower()
    family, features, rest = azure.groups()
    features = re.sub("[ir]" if family == "standard_nd" else "[imr]", "", features)
    # ND96asr_A100_v4 is another spelling of ND96asr_v4.
    return family + features + rest.replace("_a100_v4", "_v4")
