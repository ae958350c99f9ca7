"""When a slot may buy again: what this process remembers of its claims, and a back-off when they vanish.

A Karpenter deletes claims that it cannot fulfil, at once; buying again at once would churn for ever. So a claim that
goes before its node served for a while delays the next purchase of its slot, doubling up to a maximum; only a claim of
the same slot whose node serves ends that. A claim that goes after it has served is replaced at once: its node died. One
that we gave back ourselves says nothing. All of it is memory of one process: a restart costs one early attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from kaito_hooks.api.claim import Claim
from kaito_hooks.workspace.purchases.claims import is_failure


@dataclass(frozen=True, slots=True)
class Seen:
    """A claim as it was seen last.

    ``slot`` None: of a name that no slot gives. ``cause``: why it was not ready; ``failed``: that is no mere waiting.
    ``given_back``: we have asked for its deletion because no slot needs it.
    """

    name: str
    slot: int | None = None
    ready_since: datetime | None = None
    cause: str = ""
    failed: bool = False
    given_back: bool = False


@dataclass(frozen=True, slots=True)
class Bought:
    """A claim that we POSTed for a slot and no cache has shown yet."""

    uid: str
    slot: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Lost:
    """A claim that went without a failure in its conditions; an Event that tells why may still be on its way to us."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Losses:
    """How many claims of a slot were lost in a row, when the next may be bought, and why not earlier.

    ``unexplained``: the claim that was lost last, while its cause is not known.
    """

    number: int = 0
    not_before: datetime | None = None
    cause: str = ""
    unexplained: Lost | None = None


CACHE_LAG = 5.0
"""Seconds after which a POSTed claim that no cache has shown counts as lost: it came and went between two looks."""


@dataclass(frozen=True, slots=True)
class Purchases:
    """``seen``: claims by uid. ``bought``: by claim name, what is on its way into the cache. ``losses``: by slot."""

    seen: Mapping[str, Seen] = field(default_factory=dict)
    bought: Mapping[str, Bought] = field(default_factory=dict)
    losses: Mapping[int, Losses] = field(default_factory=dict)

    @property
    def claims(self) -> frozenset[str]:
        """Names of the claims of which Events may have something to tell, whether they are there or not."""
        return self.unexplained_claims.union((s.name for s in self.seen.values()), self.bought)

    @property
    def unexplained_claims(self) -> frozenset[str]:
        """Names of the claims that went without a cause."""
        return frozenset(each.unexplained.name for each in self.losses.values() if each.unexplained is not None)

    def of(self, slot: int) -> Losses:
        """What that slot has lost."""
        return self.losses.get(slot) or Losses()

    def look(
        self,
        claims: Iterable[Claim],
        *,
        slots: Mapping[str, int],
        now: datetime,
        minimum: float,
        maximum: float,
        warnings: Mapping[str, str] | None = None,
    ) -> Purchases:
        """What is remembered after seeing these claims; ``minimum`` and ``maximum`` bound the back-off in seconds.

        ``slots``: by claim name. ``warnings``: what Events say of claims, by uid. A Karpenter that deletes a claim says
        why in nothing else.
        """
        seen = {c.uid: _see(self.seen.get(c.uid), c, slot=slots.get(c.name), now=now) for c in claims}
        coming = {name: b for name, b in self.bought.items() if b.uid not in seen and b.uid not in self.seen}
        missed = {name: b for name, b in coming.items() if now - b.at >= timedelta(seconds=CACHE_LAG)}
        after = replace(self, seen=seen, bought={n: b for n, b in coming.items() if n not in missed})
        served = timedelta(seconds=minimum)
        for each in seen.values():
            if each.ready_since is not None and now - each.ready_since >= served:
                after = after._with(each.slot, Losses())
        gone = {uid: self.seen[uid] for uid in sorted(self.seen.keys() - seen.keys())}
        gone |= {missed[name].uid: Seen(name, missed[name].slot) for name in sorted(missed)}
        for uid, each in gone.items():
            if not each.given_back:
                after = after._with(each.slot, after._lost(uid, each, now=now, minimum=minimum, maximum=maximum))
        return after._explained(warnings or {})

    def lost_before(self, after: Purchases) -> int:
        """How many claims went between these and those of a later look, without having been given back."""
        gone = sum(uid not in after.seen and not seen.given_back for uid, seen in self.seen.items())
        known = after.seen.keys() | self.seen.keys() | {bought.uid for bought in after.bought.values()}
        return gone + sum(bought.uid not in known for bought in self.bought.values())

    def buy(self, name: str, uid: str, *, slot: int, now: datetime) -> Purchases:
        """A claim was POSTed, or found to be there already."""
        return replace(self, bought={**self.bought, name: Bought(uid, slot, now)})

    def give_back(self, uid: str) -> Purchases:
        """A claim is deleted because no slot needs it: its going is no loss."""
        if (seen := self.seen.get(uid)) is None:
            return self
        return replace(self, seen={**self.seen, uid: replace(seen, given_back=True)})

    def _with(self, slot: int | None, losses: Losses) -> Purchases:
        if slot is None:
            return self
        others = {number: each for number, each in self.losses.items() if number != slot}
        return replace(self, losses=others if losses == Losses() else {**others, slot: losses})

    def _lost(self, uid: str, gone: Seen, *, now: datetime, minimum: float, maximum: float) -> Losses:
        if gone.slot is None or (gone.ready_since is not None and now - gone.ready_since >= timedelta(seconds=minimum)):
            return Losses()
        before = self.of(gone.slot)
        delay = min(maximum, minimum * 2.0 ** min(before.number, 30))
        unexplained = not gone.failed and gone.ready_since is None
        cause = gone.cause or ("" if gone.ready_since else "it was deleted before its node was ready")
        return Losses(
            number=before.number + 1,
            not_before=now + timedelta(seconds=delay),
            cause=f"{gone.name} is gone: {cause}" if cause else f"{gone.name} is gone",
            unexplained=Lost(gone.name, uid) if unexplained else None,
        )

    def _explained(self, warnings: Mapping[str, str]) -> Purchases:
        """With causes that Events have told since."""
        losses = dict(self.losses)
        for slot, each in self.losses.items():
            late = each.unexplained
            if late is not None and (cause := warnings.get(late.uid)):
                losses[slot] = replace(each, cause=f"{late.name} is gone: {cause}", unexplained=None)
        return replace(self, losses=losses)


def _see(before: Seen | None, claim: Claim, *, slot: int | None, now: datetime) -> Seen:
    # A claim that stays although we asked for its deletion is one like any other.
    before = replace(before or Seen(claim.name), slot=slot)
    before = replace(before, given_back=before.given_back and claim.deleting)
    if claim.ready:
        return replace(before, ready_since=before.ready_since or now, cause="", failed=False)
    if (waiting := claim.first_waiting()) is None:
        return before
    return replace(before, cause=": ".join(waiting), failed=is_failure(*waiting))
