"""How long the processes that train together wait for one another.

The first tokenises the rows for all, which may take hours; amid the training none is away for long, and a process that
waits for a GPU that answers no more has to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed

PREPARING = timedelta(days=7)
"""Longer than any preparation: when the first process fails, whoever started the others ends them."""


@contextmanager
def for_the_first(*, afterwards: timedelta) -> Iterator[None]:
    """Inside, as long as it takes; ``afterwards`` so long. Does nothing for a process alone."""
    group = torch.distributed.group.WORLD
    if group is None:
        yield
        return
    group.set_timeout(PREPARING)
    yield
    group.set_timeout(afterwards)
