"""When a Workspace may buy again: what this process remembers of its claims, and a back-off when they vanish.

A Karpenter deletes claims that it cannot fulfil, at once; buying again at once would churn for ever. So a claim that
goes before its node served for a while delays the next purchase, doubling up to a maximum. A claim that goes after it
has served is replaced at once: its node died. All of it is memory of one process: a restart costs one early attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from kaito_hooks.api.claim import Claim
from kaito_hooks.workspace.claims import is_failure


@dataclass(frozen=True, slots=True)
class Seen:
    """A claim as it was seen last; ``cause`` says why it was not ready, ``failed`` that this is no mere waiting."""

    name: str
    ready_since: datetime | None = None
    cause: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Bought:
    """A claim that we POSTed and no cache has shown yet."""

    uid: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Lost:
    """A claim that went without a failure in its conditions; an Event that tells why may still be on its way to us."""

    name: str
    uid: str


CACHE_LAG = 5.0
"""Seconds after which a POSTed claim that no cache has shown counts as lost: it came and went between two looks."""


@dataclass(frozen=True, slots=True)
class Purchases:
    """Claims by uid, how many were lost in a row, when the next may be bought (None: at once) and why not earlier.

    ``bought``: by claim name, what is on its way into the cache. ``unexplained``: the claim that was lost last, while
    its cause is not known.
    """

    seen: Mapping[str, Seen] = field(default_factory=dict)
    bought: Mapping[str, Bought] = field(default_factory=dict)
    losses: int = 0
    not_before: datetime | None = None
    cause: str = ""
    unexplained: Lost | None = None

    @property
    def claims(self) -> frozenset[str]:
        """Names of the claims of which Events may have something to tell, whether they are there or not."""
        return self.unexplained_claims.union((s.name for s in self.seen.values()), self.bought)

    @property
    def unexplained_claims(self) -> frozenset[str]:
        """Names of the claims that went without a cause."""
        return frozenset({self.unexplained.name} if self.unexplained is not None else ())

    def look(
        self,
        claims: Iterable[Claim],
        *,
        now: datetime,
        minimum: float,
        maximum: float,
        warnings: Mapping[str, str] | None = None,
    ) -> Purchases:
        """What is remembered after seeing these claims; ``minimum`` and ``maximum`` bound the back-off in seconds.

        ``warnings``: what Events say of claims, by uid. A Karpenter that deletes a claim says why in nothing else.
        """
        told = warnings or {}
        seen = {claim.uid: _see(self.seen.get(claim.uid), claim, now) for claim in claims}
        coming = {name: b for name, b in self.bought.items() if b.uid not in seen and b.uid not in self.seen}
        missed = {name: b for name, b in coming.items() if now - b.at >= timedelta(seconds=CACHE_LAG)}
        after = replace(self, seen=seen, bought={n: b for n, b in coming.items() if n not in missed})
        served = timedelta(seconds=minimum)
        if any(s.ready_since is not None and now - s.ready_since >= served for s in seen.values()):
            after = after._served()
        lost = {uid: self.seen[uid] for uid in sorted(self.seen.keys() - seen.keys())}
        lost |= {missed[name].uid: Seen(name) for name in sorted(missed)}
        for uid, gone in lost.items():
            after = after._lost(uid, gone, now=now, minimum=minimum, maximum=maximum)
        late = after.unexplained
        if late is not None and (cause := told.get(late.uid)):
            after = replace(after, cause=f"{late.name} is gone: {cause}", unexplained=None)
        return after

    def buy(self, name: str, uid: str, *, now: datetime) -> Purchases:
        """A claim was POSTed, or found to be there already."""
        return replace(self, bought={**self.bought, name: Bought(uid, now)})

    def _served(self) -> Purchases:
        return replace(self, losses=0, not_before=None, cause="", unexplained=None)

    def _lost(self, uid: str, gone: Seen, *, now: datetime, minimum: float, maximum: float) -> Purchases:
        if gone.ready_since is not None and now - gone.ready_since >= timedelta(seconds=minimum):
            return self._served()
        delay = min(maximum, minimum * 2.0 ** min(self.losses, 30))
        unexplained = not gone.failed and gone.ready_since is None
        cause = gone.cause or ("" if gone.ready_since else "it was deleted before its node was ready")
        return replace(
            self,
            losses=self.losses + 1,
            not_before=now + timedelta(seconds=delay),
            cause=f"{gone.name} is gone: {cause}" if cause else f"{gone.name} is gone",
            unexplained=Lost(gone.name, uid) if unexplained else None,
        )


def _see(before: Seen | None, claim: Claim, now: datetime) -> Seen:
    before = before or Seen(claim.name)
    if claim.ready:
        return Seen(claim.name, before.ready_since or now)
    if (waiting := claim.first_waiting()) is None:
        return before
    return Seen(claim.name, before.ready_since, cause=": ".join(waiting), failed=is_failure(*waiting))
