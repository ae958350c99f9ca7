"""What ends a check that would go on for ever: a step that hangs, an image that never comes, a Pod that is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.workspace.tuning.checked import SETTINGS, CheckedWorld

from kaito_hooks.runtime import format_time
from kaito_hooks.workspace.configuration.settings import Check, Tuning

Obj = dict[str, Any]
HOUR = 3600.0


def limited() -> CheckedWorld:
    """Its steps may run for an hour."""
    return CheckedWorld(settings=replace(SETTINGS, tuning=Tuning(check=Check(deadline=HOUR))))


def running(world: CheckedWorld, step: str) -> Obj:
    world.begin_check()
    return world.put_pod(step, {"running": {"startedAt": format_time(world.now)}}, phase="Running")


class TestAStepThatHangs:
    def test_a_check_of_the_data_refuses_after_its_deadline_and_buys_nothing(self) -> None:
        world = limited()
        running(world, "check")
        assert world.reconcile().look_again == pytest.approx(HOUR + 0.05)
        world.pass_time(HOUR - 1)
        world.reconcile()
        assert world.check == {}
        world.pass_time(1)
        world.settle_refused()
        message = world.condition("JobStarted")[2]
        assert "step check has not ended within 1h" in message
        assert "chat template" in message
        assert "kaito.sh/tuning-check=off" in message
        assert (world.bought, world.checks()) == (0, [])

    def test_a_longer_deadline_or_no_check_is_the_way_out(self) -> None:
        world = limited()
        running(world, "check")
        world.pass_time(HOUR)
        world.settle_refused()
        assert world.workspace is not None
        world.workspace["metadata"]["annotations"]["kaito.sh/tuning-check"] = "off"
        world.settle()
        assert (world.checks_made, world.jobs_made) == (1, 1)

    @pytest.mark.parametrize("step", ["push-right", "tokenizer", "data"])
    def test_what_is_fetched_for_too_long_skips_the_check(self, step: str) -> None:
        world = limited()
        running(world, step)
        world.pass_time(HOUR)
        world.reconcile()
        assert world.check["result"] == "Skipped"
        assert f"step {step} has not ended within 1h" in world.check["message"]
        world.settle()
        assert (world.checks_made, world.jobs_made) == (1, 1)

    def test_a_step_that_is_tried_again_begins_anew(self) -> None:
        world = limited()
        pod = running(world, "data")
        world.pass_time(HOUR - 1)
        pod["status"]["initContainerStatuses"][2]["state"] = {"running": {"startedAt": format_time(world.now)}}
        world.pass_time(HOUR - 1)
        world.reconcile()
        assert (world.bought, world.check) == (0, {})

    def test_what_a_cluster_puts_into_its_pod_is_no_step_of_it(self) -> None:
        world = limited()
        pod = running(world, "push-right")
        pod["status"]["initContainerStatuses"][0]["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
        sidecar = {"name": "log-agent", "state": {"running": {"startedAt": format_time(world.now)}}}
        pod["status"]["initContainerStatuses"].insert(0, sidecar)
        world.pass_time(HOUR)
        world.reconcile()
        assert (world.bought, world.check) == (0, {})

    def test_the_job_ends_by_itself_where_no_controller_looks_and_not_while_its_steps_are_in_time(self) -> None:
        spec = limited().begin_check()["spec"]
        pod = spec["template"]["spec"]
        steps = len([*pod["initContainers"], *pod["containers"]])
        assert steps == 4
        assert steps * HOUR < spec["activeDeadlineSeconds"] <= (steps + 1) * HOUR

    def test_the_job_waits_for_a_node_as_long_as_the_timeout_says_however_short_a_step_may_be(self) -> None:
        short = Check(deadline=60, timeout=HOUR)
        world = CheckedWorld(settings=replace(SETTINGS, tuning=Tuning(check=short)))
        assert world.begin_check()["spec"]["activeDeadlineSeconds"] > HOUR

    def test_one_that_has_only_waited_until_its_job_ended_is_made_again(self) -> None:
        world = limited()
        job = world.begin_check()
        world.put_pod("push-right", {"terminated": {"exitCode": 2, "message": "r.io refuses the credentials"}})
        world.reconcile()
        world.pods = []
        failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "it was active too long"}
        job["status"] = {"conditions": [failed]}
        for _ in range(4):
            world.reconcile()
        assert (world.checks_made, world.bought, world.check) == (2, 0, {})
        world.settle()
        assert (world.jobs_made, world.check["result"]) == (1, "Passed")


class TestAnImageThatNeverComes:
    @pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"])
    def test_the_check_is_skipped_after_its_timeout_and_the_reason_said(self, reason: str) -> None:
        world = CheckedWorld()
        world.begin_check()
        begun = {"type": "Initialized", "status": "True", "lastTransitionTime": format_time(world.now)}
        state = {"waiting": {"reason": reason, "message": "manifest unknown"}}
        world.put_pod("check", state, conditions=[begun])
        assert world.reconcile().look_again == pytest.approx(120.05)
        world.pass_time(119)
        world.reconcile()
        assert world.check == {}
        world.pass_time(1)
        world.reconcile()
        assert world.check["result"] == "Skipped"
        assert "its image did not come within 2m" in world.check["message"]
        assert "cannot be pulled: manifest unknown" in world.check["message"]
        world.settle()
        assert (world.checks_made, world.jobs_made) == (1, 1)

    def test_the_time_that_the_steps_before_it_took_does_not_count(self) -> None:
        world = CheckedWorld()
        world.begin_check()
        pod = world.put_pod("check", {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})
        world.pass_time(600)
        begun = {"type": "Initialized", "status": "True", "lastTransitionTime": format_time(world.now)}
        pod["status"]["conditions"] = [begun]
        world.reconcile()
        assert world.check == {}

    def test_an_image_that_the_job_on_the_node_needs_as_well_buys_nothing(self) -> None:
        world = CheckedWorld()
        world.begin_check()
        world.put_pod("push-right", {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})
        world.pass_time(HOUR)
        world.reconcile()
        assert (world.bought, world.check) == (0, {})
        assert "cannot be pulled: not found" in world.condition("JobStarted")[2]


def test_a_pod_that_a_range_of_limits_refuses_is_told_with_the_ways_out() -> None:
    world = CheckedWorld()
    job = world.begin_check()
    told = 'pods "phi-check-1-abc" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi'
    world.refused_pods = {job["metadata"]["uid"]: told}
    world.reconcile()
    message = world.condition("JobStarted")[2]
    assert "maximum memory usage per Container is 1Gi, but limit is 2Gi" in message
    assert "tuning.check.resources" in message
    assert "kaito.sh/tuning-check=off" in message
    assert world.bought == 0
