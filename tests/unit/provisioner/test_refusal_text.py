"""What users are told when the cloud refuses their instance type."""

from __future__ import annotations

import re

import pytest
from tests.unit.provisioner.budget import FAILURE, LAUNCH
from tests.unit.provisioner.world import World

from kaito_hooks.api.claim import Claim, ClaimSpec, NodeAPI, encode
from kaito_hooks.provisioner.errors import (
    AuthenticationFailed,
    CloudError,
    ConfigurationError,
    InstanceTypeUnavailable,
    InsufficientCapacity,
    InvalidRequest,
    LaunchFailed,
    OperationInProgress,
    PoolNameConflict,
    QuotaExceeded,
    Throttled,
)
from kaito_hooks.provisioner.refusal_text import refusal_text

ANNOTATION = "kaito.sh/fitting-instance-types"
OTHERS = "Standard_NC4as_T4_v3, Standard_NC24ads_A100_v4"
ADVICE = (
    "Instance type asked for: Standard_NC6s_v3. "
    "Other instance types that fit: Standard_NC4as_T4_v3, Standard_NC24ads_A100_v4."
)
TEXT = "exceeding approved standardNCSv3Family Cores quota. Current Limit: 6, Additional Required: 6."


def claim(others: str | None = OTHERS, *, instance_type: str = "Standard_NC6s_v3", kind: NodeAPI = "Machine") -> Claim:
    annotations = {} if others is None else {ANNOTATION: others}
    spec = ClaimSpec("ws000000001", {"kaito.sh/workspace": "w"}, instance_type, annotations=annotations)
    return Claim.read(encode(spec, kind))


@pytest.mark.parametrize("kind", ["Machine", "NodeClaim"])
@pytest.mark.parametrize("error", [QuotaExceeded, InsufficientCapacity, InstanceTypeUnavailable])
def test_what_is_missing_is_told_with_the_type_and_what_else_would_fit(error: type[CloudError], kind: NodeAPI) -> None:
    assert refusal_text(claim(kind=kind), error("Code", TEXT)) == f"Code: {TEXT} {ADVICE}"


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationFailed,
        ConfigurationError,
        InvalidRequest,
        LaunchFailed,
        OperationInProgress,
        PoolNameConflict,
        Throttled,
    ],
)
def test_another_type_is_not_offered_where_it_would_not_help(error: type[CloudError]) -> None:
    assert refusal_text(claim(), error("Code", TEXT)) == f"Code: {TEXT}"


def test_a_long_text_is_shortened_before_the_advice_is() -> None:
    message = refusal_text(claim(), QuotaExceeded("Code", f"{TEXT} " + "and so on " * 200))
    assert 740 < len(message) <= 750  # the moment of the next try still fits into 800
    assert message.startswith(f"Code: {TEXT} and so on")
    assert message.endswith(f"... {ADVICE}")


def test_a_text_without_a_full_stop_gets_one() -> None:
    assert refusal_text(claim(None), InsufficientCapacity("C", "not in 'eastus'")) == (
        "C: not in 'eastus'. Instance type asked for: Standard_NC6s_v3."
    )


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ("", ""),
        (" , ,", ""),
        ("Standard_NC6s_v3", ""),
        ("one,\n two\n, <three>", " Other instance types that fit: one, two."),
        (", ".join(f"Standard_ND{number}s_v3" for number in range(100)), ""),
    ],
    ids=["empty", "commas", "its own", "no name", "a hundred"],
)
def test_whatever_the_annotation_says_the_message_stays_one_short_line(others: str, named: str) -> None:
    message = refusal_text(claim(others), QuotaExceeded("C", "text " * 400))
    assert len(message) <= 800
    assert "\n" not in message
    assert "text" in message
    if named:
        assert message.endswith(named)
    elif "Standard_ND" in others:
        assert message.endswith(".")
        assert 5 <= message.count("Standard_ND") <= 20
    else:
        assert "Other instance types" not in message


def test_a_claim_says_it_for_a_refusal_at_once_and_for_one_that_comes_later() -> None:
    for later in (False, True):
        world = World()
        world.allow(LAUNCH + FAILURE)
        error = QuotaExceeded("QuotaExceeded", TEXT)
        if later:
            world.cloud.fail_creation = [error]
        else:
            world.cloud.refuse = lambda verb, error=error: error if verb == "create" else None
        world.ask(annotations={ANNOTATION: OTHERS})
        world.run(world.cloud.create_seconds + 30)
        state = world.there().steps["launched"]
        said = f"QuotaExceeded: {TEXT} {ADVICE}"
        assert state.reason == "QuotaExceeded"
        assert re.sub(r" \(next try at \S+Z\)$", "", state.message) == said != state.message
        assert ("ws000000001", "Warning", "QuotaExceeded", said) in world.heard.events
        assert world.billing() == []


def test_with_karpenters_way_the_claim_goes_with_its_cause_written_down() -> None:
    world = World(delete_on_insufficient_capacity=True, node_api="NodeClaim")
    world.cloud.refuse = lambda verb: InsufficientCapacity("C", "none left") if verb == "create" else None
    world.ask(annotations={ANNOTATION: OTHERS})
    world.reconcile("ws000000001")
    going = world.there()
    assert going.deleting
    assert going.first_waiting() == ("InsufficientCapacity", f"C: none left. {ADVICE}")


def test_the_advice_is_not_copied_to_the_node() -> None:
    world = World()
    world.ready_claim(annotations={ANNOTATION: OTHERS, "kaito.sh/other": "kept"})
    node = world.node_of()
    assert node is not None
    assert node["metadata"]["annotations"].get("kaito.sh/other") == "kept"
    assert ANNOTATION not in node["metadata"]["annotations"]
