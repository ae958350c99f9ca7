"""What a phase found out about a claim. Phases return it, lifecycle.py writes it down: once per reconcile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from kaito_hooks.api.claim import StepState
from kaito_hooks.provisioner.errors import CloudError
from kaito_hooks.runtime import format_time

_AGAIN = " (next try at "


class Progress(Enum):
    """How far a step is."""

    DONE = "done"
    WAITING = "waiting"
    BROKEN = "broken"  # waiting, but for something that should not be


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step of one claim at this moment.

    ``requeue_after`` is in seconds; None = an event will tell. ``status`` are fields of the claim's status,
    ``labels`` and ``annotations`` what to add to its metadata. ``error`` is the cloud's refusal behind it, if one is.
    ``again`` is when the refused thing is tried again, where that is worth telling. ``keep`` leaves the condition as it
    is: it tells more than the present moment does.
    """

    progress: Progress
    reason: str = ""
    message: str = ""
    requeue_after: float | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    error: CloudError | None = None
    again: datetime | None = None
    keep: bool = False

    @property
    def done(self) -> bool:
        """Whether the next step may begin."""
        return self.progress is Progress.DONE

    @property
    def condition_message(self) -> str:
        """The message with the moment of the next try, for the condition; Events, which are counted, go without."""
        return self.message if self.again is None else f"{self.message}{_AGAIN}{format_time(self.again)})"

    def is_recorded_in(self, step: StepState) -> bool:
        """Whether the condition says this already, whenever its next try was or is."""
        return (step.reason, step.message.partition(_AGAIN)[0]) == (self.reason, self.message)

    @classmethod
    def refused(
        cls, error: CloudError, *, message: str = "", requeue_after: float, again: datetime | None = None
    ) -> Outcome:
        """Waiting because the cloud refused; ``message`` if there is more to say than the cloud did."""
        text = message or error.message
        return cls(Progress.WAITING, error.reason, text, requeue_after=requeue_after, error=error, again=again)

    @classmethod
    def unchanged(cls, *, requeue_after: float) -> Outcome:
        """Waiting, with nothing better to say than the condition already does."""
        return cls(Progress.WAITING, requeue_after=requeue_after, keep=True)
