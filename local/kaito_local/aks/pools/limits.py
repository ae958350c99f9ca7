"""What a new or larger agent pool meets: the cluster's size, the subscription's quotas, the region's capacity."""

from __future__ import annotations

from collections.abc import Iterable

from kaito_local.aks.errors import aks_error
from kaito_local.aks.pools.pool import CANCELED, FAILED, Failure, Pool
from kaito_local.aks.settings import Limits, Settings, Size, sizes


def check_pools(existing: int, limits: Limits) -> None:
    """Raises Refusal for one pool too many; pools that failed or are being deleted count.

    The number and the code are AKS's (https://learn.microsoft.com/azure/aks/quotas-skus-regions), the words are not
    published.
    """
    if existing >= limits.pools:
        message = f"The maximum number of agent pools of a managed cluster has been reached: {limits.pools}."
        raise aks_error(400, "MaxAgentPoolCountReached", message)


def check_machines(
    size: Size, count: int, *, others: Iterable[Pool], limits: Limits, settings: Settings
) -> Failure | None:
    """Raises Refusal, or says with what the operation will fail, or None. ``others``: the cluster's other pools."""
    holding = [pool for pool in others if pool.state not in (FAILED, CANCELED) or pool.machines_started]
    if size.name.lower() in (restricted.lower() for restricted in limits.restricted):
        return _restricted(size, settings.location, asynchronous=limits.asynchronous)
    for family in (size.family, "regional"):
        limit = limits.quota.get(family)
        if limit is None:
            continue
        used = sum(_vcpus(pool) for pool in holding if family in ("regional", sizes()[pool.size.lower()].family))
        if used + size.vcpus * count > limit:
            return _quota(size, count, family=family, limit=limit, used=used, settings=settings, limits=limits)
    left = next((n for key, n in limits.capacity.items() if key.lower() == size.name.lower()), None)
    taken = sum(pool.count for pool in holding if pool.size.lower() == size.name.lower())
    if left is not None and taken + count > left:
        message = "Allocation failed. We do not have sufficient capacity for the requested VM size in this region."
        return Failure({"code": "AllocationFailed", "message": message, "details": []})
    return None


def _vcpus(pool: Pool) -> int:
    return sizes()[pool.size.lower()].vcpus * pool.count


def _restricted(size: Size, location: str, *, asynchronous: bool) -> Failure:
    if asynchronous:
        message = (
            f"The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: {size.name}' "
            f"is currently not available in location '{location}'."
        )
        return Failure({"code": "SkuNotAvailable", "message": message, "details": []})
    message = f"The VM size of {size.name} is not allowed in your subscription in location '{location}'."
    raise aks_error(400, "BadRequest", message)


def _quota(
    size: Size, count: int, *, family: str, limit: int, used: int, settings: Settings, limits: Limits
) -> Failure:
    wanted = size.vcpus * count
    name = "Total Regional Cores quota" if family == "regional" else f"{family} Cores quota"
    details = (
        f"Additional details - Location: {settings.location}, Current Limit: {limit}, Current Usage: {used}, "
        f"Additional Required: {wanted}, "
        f"(Minimum) New Limit Required: {used + wanted}."
    )
    if limits.asynchronous:
        message = f"Operation could not be completed as it results in exceeding approved {name}. {details}"
        return Failure({"code": "QuotaExceeded", "message": message, "details": []})
    message = (
        f"Insufficient vcpu quota requested {wanted}, remaining {max(0, limit - used)} for {name}. {details} "
        "Submit a request for Quota increase in the Azure portal."
    )
    raise aks_error(400, "ErrCode_InsufficientVCPUQuota", message)
