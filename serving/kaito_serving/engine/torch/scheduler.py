"""Who waits, who runs, and what the next forward pass takes in. It decides over plain values and has no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kaito_serving.engine.torch.arena import Arena
from kaito_serving.engine.torch.row import Row


class Scheduler:
    """Rows wait until the cache has room for all that they may need; from then on they run to their end.

    A pass takes at most `max_batch_tokens` tokens: first one of each row that answers, so that a long prompt never
    holds an answer up for longer than one pass; then parts of prompts. The one that was admitted first gets half of
    that room, so that no stream of others can hold it up, and all of it when it is alone; the others get the rest,
    the one first of which least is left, so that a short prompt waits neither for a long one nor for much of it.
    """

    def __init__(self, arena: Arena, *, max_batch_tokens: int) -> None:
        self._arena = arena
        self._max_batch_tokens = max_batch_tokens
        self._most_running = max(1, max_batch_tokens // 2)  # half of a pass is left to prompts
        self.waiting: list[Row] = []
        self.running: list[Row] = []

    def add(self, row: Row) -> None:
        """Let a row wait. It must fit into the empty cache."""
        if row.reservation > self._arena.tokens:
            raise AssertionError("a request larger than the cache must not get here: it would wait for ever")
        self.waiting.append(row)

    def remove(self, row: Row) -> None:
        """Take a row out, wherever it is."""
        if row.span is None:
            self.waiting.remove(row)
        else:
            self.running.remove(row)
            self._arena.free(row.span)
            row.span = None

    def admit(self) -> list[Row]:
        """Start the waiting rows that have room; returns them.

        The next is one of the highest priority, of the client that has fewest running, the oldest of these. While it
        has no room nobody passes it, or a large request would wait for ever.
        """
        admitted: list[Row] = []
        while self.waiting and len(self.running) < self._most_running:
            row = min(self.waiting, key=self._turn())
            span = self._arena.allocate(row.reservation)
            if span is None:
                break
            row.span = span
            self.waiting.remove(row)
            self.running.append(row)
            admitted.append(row)
        return admitted

    def plan(self) -> list[tuple[Row, int]]:
        """The next pass: rows with the number of their pending tokens that it takes in."""
        steps = [(row, 1) for row in self.running if row.pending == 1]
        prompts = [row for row in self.running if row.pending > 1]
        if prompts:
            room = self._max_batch_tokens - len(steps)
            first, *others = prompts
            parts = [(first, min(first.pending, room // 2 if others else room))]
            for row in sorted(others, key=lambda row: row.pending):
                room -= parts[-1][1]
                parts.append((row, min(row.pending, room)))
            steps += [(row, count) for row, count in parts if count]
        return steps

    def _turn(self) -> Callable[[Row], tuple[int, int, int]]:
        active = Counter(row.request.client for row in self.running)
        return lambda row: (-row.request.priority, active[row.request.client], row.arrival)
