"""What each pass takes in, planned over rows without a model."""

import torch

from kaito_serving.engine.base import Request, SamplingParams
from kaito_serving.engine.torch.arena import Arena
from kaito_serving.engine.torch.row import Row
from kaito_serving.engine.torch.sampling import Sampler
from kaito_serving.engine.torch.scheduler import Scheduler

PASS = 64  # tokens


class Engine:
    """A scheduler whose passes only count: `passes` of them; every row that is read gets its tokens."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(Arena({}, tokens=100_000), max_batch_tokens=PASS)
        self.arrivals = 0

    def ask(self, prompt: int, *, answer: int = 1) -> Row:
        params = SamplingParams(max_tokens=answer)
        ids = list(range(prompt))
        self.arrivals += 1
        sampler = Sampler(params, ids, vocabulary=1, device=torch.device("cpu"))
        row = Row(Request(prompt_ids=tuple(ids), params=params), self.arrivals, sampler, came=0.0)
        self.scheduler.add(row)
        return row

    def step(self) -> dict[Row, int]:
        """One pass: what it took of each row."""
        self.scheduler.admit()
        steps = dict(self.scheduler.plan())
        for row, count in steps.items():
            row.span.used += count
            if not row.pending:
                row.sampler.add(0)
                if row.sampler.answered == row.request.params.max_tokens:
                    self.scheduler.remove(row)
        return steps


def test_a_short_prompt_does_not_wait_for_a_long_one():
    engine = Engine()
    long = engine.ask(PASS * 8)
    assert engine.step() == {long: PASS}
    short = engine.ask(20)
    assert engine.step() == {long: PASS // 2, short: 20}
    assert short.sampler.answered == 1


def test_a_long_prompt_gets_half_of_each_pass_however_many_short_ones_come():
    engine = Engine()
    long = engine.ask(PASS * 8)
    passes = 0
    while not long.sampler.answered:
        for _ in range(8):
            engine.ask(20)
        steps = engine.step()
        assert steps[long] == PASS // 2
        assert sum(steps.values()) == PASS
        passes += 1
    assert passes == 16


def test_of_two_prompts_the_shorter_rest_goes_first_and_the_elder_is_read_on():
    engine = Engine()
    elder, younger = engine.ask(PASS * 4), engine.ask(PASS * 2)
    assert engine.step() == {elder: PASS // 2, younger: PASS // 2}


def test_answers_go_before_prompts():
    engine = Engine()
    answering = [engine.ask(4, answer=100) for _ in range(10)]
    engine.step()
    long = engine.ask(PASS * 8)
    assert engine.step() == dict.fromkeys(answering, 1) | {long: PASS - 10}


def test_a_pass_is_at_least_half_full_or_takes_everything():
    engine = Engine()
    rows = [engine.ask(length, answer=3) for length in (1, 2, 63, 64, 65, 200, 7)]
    while engine.scheduler.running or engine.scheduler.waiting:
        due = sum(row.pending for row in engine.scheduler.running + engine.scheduler.waiting)
        steps = engine.step()
        assert min(PASS // 2, due) <= sum(steps.values()) <= PASS
        assert all(steps.values())
    assert [row.sampler.answered for row in rows] == [3] * len(rows)
