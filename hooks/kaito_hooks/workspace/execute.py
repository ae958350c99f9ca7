"""Carry out a plan: with ``writer``, which it gives its actions to, the only place of this controller with effects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from kaito_hooks.api import claim as claim_api
from kaito_hooks.api import labels
from kaito_hooks.runtime import (
    ApiError,
    Client,
    Clock,
    Conflict,
    EventRecorder,
    Key,
    LeadershipLost,
    NotFound,
    Obj,
    format_time,
)
from kaito_hooks.workspace.decision.actions import Delete, Note, Plan
from kaito_hooks.workspace.decision.snapshot import Memory, Snapshot
from kaito_hooks.workspace.memory import Memories
from kaito_hooks.workspace.metrics import WorkspaceMetrics
from kaito_hooks.workspace.resources import WORKSPACE
from kaito_hooks.workspace.status import conditions
from kaito_hooks.workspace.writer import REFUSED, Writer, delete

logger = logging.getLogger(__name__)


class Executor:
    """Carries out plans with a client; ``refusal_pause`` is how many seconds a refused write waits.

    ``metrics`` counts what was done.
    """

    def __init__(
        self,
        client: Client,
        *,
        recorder: EventRecorder,
        memories: Memories,
        metrics: WorkspaceMetrics,
        clock: Clock,
        refusal_pause: float,
    ) -> None:
        self._client, self._recorder, self._memories = client, recorder, memories
        self._metrics = metrics
        self._clock, self._refusal_pause = clock, refusal_pause

    def execute(self, s: Snapshot, plan: Plan) -> bool:
        """Carry out the plan; whether the Workspace should be looked at again at once.

        Raises ApiError for what may succeed later, LeadershipLost when another process leads.
        """
        writer = Writer(
            self._client,
            s,
            memories=self._memories,
            clock=self._clock,
            refusal_pause=self._refusal_pause,
            metrics=self._metrics,
        )
        known = plan.memory
        self._metrics.claims_lost.inc(s.memory.purchases.lost_before(known.purchases))
        self._remember(
            s,
            lambda m: replace(
                m,
                purchases=known.purchases,
                refusals=known.refusals,
                pull_errors=known.pull_errors,
                job_failures=known.job_failures,
                idle_since=known.idle_since,
            ),
        )
        try:
            return self._carry_out(writer, s, plan)
        finally:
            superseded = frozenset(writer.superseded)
            self._remember(s, lambda m: replace(m, superseded=superseded))

    def _carry_out(self, writer: Writer, s: Snapshot, plan: Plan) -> bool:
        for action in plan.actions:
            writer.perform(action)
            if writer.gone or writer.held:
                break
        if writer.gone:
            return False
        if writer.refused or writer.held:
            # The plan did not know of the refusal; the next one does, and says so.
            return True
        try:
            if plan.status is not None:
                writer.write_status(plan.status)
        except ApiError:
            # The next plan finds the deeds done and says nothing of them; what the status says, it says again.
            self._tell(s, plan.deeds)
            raise
        self._tell(s, [*plan.deeds, *plan.notes])
        return False

    def _tell(self, s: Snapshot, notes: Iterable[Note]) -> None:
        for note in conditions.told_together(notes):
            self._recorder.event(dict(s.workspace.raw), note.type, note.reason, note.message, alone=note.alone)

    def delete_orphans(self, key: Key, claims: list[claim_api.Claim]) -> None:
        """Delete claims whose Workspace does not exist."""
        for claim in claims:
            logger.warning("%s %s belongs to no Workspace any more, deleting it", claim.kind, claim.name)
            delete(self._client, Delete(claim.kind, "", claim.name, claim.uid), metrics=self._metrics)

    def roll(self, workspace: Obj) -> str | None:
        """Ask for a roll of the Workspace's workload; the roll's name, None if the Workspace is not as it was seen.

        Raises what the API server refuses for good, and says so.
        """
        metadata = workspace["metadata"]
        name = format_time(self._clock.now())
        annotations = {labels.AUTOMATIC_ROLL: name}
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "annotations": annotations}}
        try:
            self._client.patch(WORKSPACE, metadata["name"], patch, namespace=metadata["namespace"])
        except (Conflict, NotFound):
            return None
        except REFUSED as error:
            self._recorder.event(workspace, "Warning", "RollRefused", f"it cannot be rolled: {error.message}")
            raise
        text = "rolled: its workload is made of today's settings"
        self._recorder.event(workspace, "Normal", "RollStarted", text, alone=True)
        return name

    def report(self, workspace: Obj, error: Exception) -> None:
        """Say in the Workspace's status, and in an Event, that its reconcile failed with an error nobody foresaw."""
        verdicts = conditions.unforeseen(error)
        changed = conditions.of_unread(workspace, verdicts, now=format_time(self._clock.now()))
        if changed is None:
            return
        try:
            self._client.update(WORKSPACE, {**workspace, "status": changed}, subresource="status")
        except (ApiError, LeadershipLost) as refused:
            logger.warning("the status does not say yet that the reconcile failed: %s", refused)
            return
        self._recorder.event(workspace, "Warning", verdicts[0].reason, verdicts[0].message)

    def _remember(self, s: Snapshot, how: Callable[[Memory], Memory]) -> None:
        """Change what is remembered of the Workspace."""
        self._memories.change(s.workspace.uid, how)
