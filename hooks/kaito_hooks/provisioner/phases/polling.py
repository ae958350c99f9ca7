"""How often claims that wait for the cloud look, and how old the listing that they share may be.

Often at first, when a refusal is likely; then more rarely, as a GPU pool takes its minutes to come and to go.
"""

from __future__ import annotations

from datetime import datetime

from kaito_hooks.provisioner.phases.environment import Environment

EAGER_LOOKS = 12
PATIENCE = 3.0
# Less than PATIENCE: a single waiting claim finds a new listing at each look.
LISTING_PATIENCE = 2.0
# Seconds between two tries to delete a machine, before jitter: as long as it is there it may bill.
LONGEST_DELETION_RETRY = 60.0


def look_again(since: datetime | None, env: Environment) -> float:
    """Seconds until the next look of a claim that has waited since then."""
    return env.settings.pool_poll_interval * (1.0 if _eager(since, env) else PATIENCE)


def listing_age(since: datetime | None, env: Environment) -> float:
    """How many seconds old a listing may be for a claim that has waited since then."""
    return env.settings.pool_poll_interval * (1.0 if _eager(since, env) else LISTING_PATIENCE)


def _eager(since: datetime | None, env: Environment) -> bool:
    """For twelve looks, a minute by default; without a known beginning the time for that is over."""
    period = env.settings.pool_poll_interval * EAGER_LOOKS
    return since is not None and (env.clock.now() - since).total_seconds() < period
