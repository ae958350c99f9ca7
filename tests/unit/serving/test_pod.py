"""All replicas as one: when they are ready, how far they are, and when the first start has failed."""

from __future__ import annotations

import pytest

from kaito_serving.engine.base import State
from kaito_serving.errors import EngineUnavailable, ServerFailed, StartupError
from kaito_serving.http.contract import Progress
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.run.pod import Pod, pod_progress
from kaito_serving.run.startup import Startup, Told
from kaito_serving.run.supervision import give_up


def loading(part=None, step="loading weights"):
    return Told(Startup(step=step, progress=part), alive=True)


READY = Told(Startup("ready"), alive=True)
DEAD = Told(Startup("ready"), alive=False)
DEAD_LOADING = Told(Startup(step="loading weights", progress=0.5), alive=False)
UNREADABLE = Told(Startup("failed", reason="The weights cannot be read.", final=True), alive=False)
ENGINE = Told(Startup("failed", reason="Two forward passes failed within a minute."), alive=True)
DIED = "A process of the model died."


@pytest.mark.parametrize(
    ("told", "wanted", "routed", "was_ready", "expected"),
    [
        ([], 1, 0, False, ("loading", None, "starting the model's process")),
        ([loading()], 1, 0, False, ("loading", None, "loading weights")),
        ([loading(0.42)], 1, 0, False, ("loading", 0.42, "loading weights")),
        ([loading(0.5), loading(0.1), READY], 4, 1, False, ("loading", 0.4, "loading weights")),
        ([READY, READY, READY], 4, 3, False, ("loading", None, "starting the model's process")),
        ([READY], 1, 0, False, ("loading", None, "waiting for the first answer")),
        ([READY], 1, 1, False, ("ready", None, "")),
        ([READY] * 4, 4, 4, False, ("ready", None, "")),
        ([READY, READY, READY, DEAD], 4, 3, True, ("ready", None, f"3 of 4 replicas answer. {DIED}")),
        ([READY, DEAD, loading(0.2)], 2, 1, True, ("ready", None, f"1 of 2 replicas answer. {DIED}")),
        ([DEAD, READY], 1, 1, True, ("ready", None, "")),
        ([DEAD], 1, 0, True, ("restarting", None, DIED)),
        ([READY], 1, 0, True, ("restarting", None, "waiting for the first answer")),
        ([DEAD, loading(0.3)], 1, 0, True, ("restarting", 0.3, f"{DIED} Starting again: loading weights")),
        ([DEAD, READY], 1, 0, True, ("restarting", None, f"{DIED} Starting again: waiting for the first answer")),
        ([DEAD, UNREADABLE], 1, 0, True, ("failed", None, "The weights cannot be read.")),
        ([ENGINE], 1, 0, True, ("failed", None, "Two forward passes failed within a minute.")),
        (
            [DEAD, UNREADABLE, loading(step="")],
            1,
            0,
            True,
            ("restarting", None, "The weights cannot be read. Starting again: starting the model's process"),
        ),
        ([READY, UNREADABLE], 2, 1, True, ("ready", None, "1 of 2 replicas answer. The weights cannot be read.")),
        ([UNREADABLE], 1, 0, False, ("failed", None, "The weights cannot be read.")),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_what_replicas_told_is_one_state_of_the_pod(told, wanted, routed, was_ready, expected):
    progress = pod_progress(told, wanted=wanted, routed=routed, was_ready=was_ready)
    assert (progress.state.value, progress.progress, progress.message) == expected


@pytest.fixture
def pod():
    return Pod(replicas=4, metrics=ServingMetrics(model="m", version="0"))


def test_four_replicas_are_ready_together_and_later_three_of_them_are_enough(pod):
    pod.look([READY, READY, READY, loading(0.9)], routed=3)
    assert pod.unready() == "Model not initialized"
    pod.look([READY] * 4, routed=4)
    assert pod.unready() is None
    pod.look([DEAD, READY, READY, READY], routed=3)
    assert pod.unready() is None
    pod.look([DEAD] * 4, routed=0)
    assert pod.unready() == "Pipeline not initialized"
    pod.look([DEAD] * 4 + [READY], routed=1)
    assert pod.unready() is None


def test_a_question_while_no_replica_answers_says_how_far_they_are(pod):
    pod.look([loading(0.42)] * 4, routed=0)
    with pytest.raises(EngineUnavailable, match=r"^The model does not answer yet: loading weights, 42 %\.$"):
        pod.surfaces()


def test_a_draining_server_says_so_and_stays_healthy_while_it_answers(pod):
    pod.look([READY] * 4, routed=4)
    pod.drain()
    pod.look([READY] * 4, routed=4)
    assert pod.progress() == Progress(state=State.DRAINING, message="the server is stopping")
    assert pod.unready() is None
    with pytest.raises(EngineUnavailable, match=r"^The server is stopping\.$"):
        pod.surfaces()


@pytest.mark.parametrize("told", [[loading()] * 4, [READY] * 3 + [loading()], [DEAD_LOADING] * 8 + [loading()] * 4])
def test_replicas_that_load_are_no_deaths(told):
    give_up(told, replicas=4)


def test_a_start_with_more_than_two_deaths_a_replica_has_failed():
    with pytest.raises(ServerFailed, match="died several times"):
        give_up([DEAD_LOADING] * 9, replicas=4)


def test_a_start_that_failed_for_good_and_one_that_may_be_tried_again_are_told_apart():
    with pytest.raises(StartupError, match="cannot be read"):
        give_up([loading(), UNREADABLE], replicas=2)
    with pytest.raises(ServerFailed, match="Two forward passes"):
        give_up([ENGINE], replicas=1)
