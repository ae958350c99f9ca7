"""What a claim may cost the provisioner: reconciles, and requests to ARM, in sums of what the contract allows."""

from __future__ import annotations

import math

from tests.driven.budget import Budget


def looks(seconds: float) -> Budget:
    """What a claim that waits so long for the cloud may look: every 5 s for a minute, then every 15 s (contract, 3)."""
    number = math.ceil(min(seconds, 60.0) / 5.0 + max(0.0, seconds - 60.0) / 15.0)
    return Budget(reconciles=number, requests=number)


# What else the contract allows. A claim is also woken by what is written to it and to its Node; a Node wakes the
# controllers of both kinds.
ORDER = Budget(reconciles=4, requests=4)
"""A look, a GET and a PUT, refused or not, and one more look when the claim's own change wakes it."""
LAUNCH = ORDER + looks(180.0 + 15.0) + Budget(reconciles=16, requests=1)
"""A creation of 3 minutes, and a Node that joins, registers and is initialized."""
END = Budget(reconciles=12 + 16, requests=12 + 5)
"""A deletion of 1 minute, looked at every 5 s, with a GET and a DELETE before and a GET after it."""
DRAIN = Budget(reconciles=30 + 6, requests=0)
"""A Pod that is evicted and takes its 30 s to end, looked at every second."""
FAILURE = Budget(reconciles=8, requests=4)
"""A broken pool, whose cause is written before it is looked at once more and deleted."""
