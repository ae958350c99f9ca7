"""The refusals of the taxonomy as the provisioner reads them from their wire forms."""

from __future__ import annotations

from typing import Any

from azure.core.exceptions import ServiceRequestError
from tests.taxonomy import ROWS, THROTTLED, Row
from tests.unit.provisioner.world import World

from kaito_hooks.provisioner.azure.errors import Refusal, classify, from_sdk, retry_after
from kaito_hooks.provisioner.errors import CloudError, LaunchFailed, OperationInProgress
from kaito_local.aks import ready_made

JITTER = 1.2
"""By how much longer than documented a pause may be."""
LATER = [row for row in ROWS if "error" in ready_made()[row.name]]
"""Those with which the creation of a pool ends."""
AT_ONCE = [row for row in (*ROWS, *THROTTLED) if row not in LATER]
"""Those with which a request is answered."""


def refusal(row: Row, world: World) -> CloudError:
    """What the provisioner makes of that answer."""
    entry: Any = ready_made()[row.name]
    if "cut" in entry:
        return from_sdk(ServiceRequestError("the connection was cut"), world.clock.now())
    wait = retry_after(entry.get("headers") or {}, world.clock.now())
    return classify(Refusal.of(entry.get("status"), entry.get("body") or {}, retry_after=wait))


def failure(row: Row) -> CloudError:
    """What the provisioner makes of a pool that ended so."""
    entry: Any = ready_made()[row.name]
    found = Refusal.of(None, entry["error"])
    if entry.get("canceled"):
        return OperationInProgress(found.code, found.message)
    return classify(found) if entry["error"] else LaunchFailed("", "failed without an error")
