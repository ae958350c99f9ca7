from typing import Any

import pytest

from kaito_hooks.workspace.decision.actions import Outcome
from kaito_hooks.workspace.status.pods import explain, pull_errors, sentence


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "phi-1", "namespace": "models", "uid": "u"}, "status": {"phase": "Pending", **status}}


def container(name: str = "weights", **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "r.io/x:1", "ready": False, **more}


def crashed(message: str, *, code: int = 2, reason: str = "Error") -> dict[str, Any]:
    return {
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting"}},
        "lastState": {"terminated": {"exitCode": code, "reason": reason, "message": message}},
    }


def unpulled(reason: str, message: str) -> dict[str, Any]:
    return pod(containerStatuses=[container("phi", state={"waiting": {"reason": reason, "message": message}})])


def told(*pods: dict[str, Any], **warnings: str) -> Outcome:
    found = explain(pods, warnings)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("status", "message"),
    [
        pytest.param(
            {"initContainerStatuses": [container(**crashed("the weights hold model.bin, a pickle; use safetensors"))]},
            "Pod phi-1: init container weights: the weights hold model.bin, a pickle; use safetensors",
            id="an init container says why",
        ),
        pytest.param(
            {
                "initContainerStatuses": [
                    container(state={"terminated": {"exitCode": 1, "reason": "Error", "message": "not found"}})
                ]
            },
            "Pod phi-1: init container weights: not found",
            id="it has just ended",
        ),
        pytest.param(
            {"containerStatuses": [container("phi", **crashed("Traceback\n  File x\nValueError: no config\n"))]},
            "Pod phi-1: container phi: ValueError: no config",
            id="the end of a log",
        ),
        pytest.param(
            {"containerStatuses": [container("phi", **crashed("", code=137, reason="OOMKilled"))]},
            "Pod phi-1: container phi: it ran out of memory (OOMKilled); "
            "give it more, or choose a larger instance type",
            id="out of memory",
        ),
        pytest.param(
            {"containerStatuses": [container("phi", **crashed("", code=139))]},
            "Pod phi-1: container phi: it ended with exit code 139 (Error)",
            id="without a word",
        ),
        pytest.param(
            {
                "containerStatuses": [
                    container("phi", state={"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})
                ]
            },
            "Pod phi-1: container phi: image r.io/x:1 cannot be pulled: not found",
            id="image",
        ),
        pytest.param(
            {
                "containerStatuses": [
                    container("phi", state={"waiting": {"reason": "CreateContainerConfigError", "message": "no s"}})
                ]
            },
            "Pod phi-1: container phi: CreateContainerConfigError: no s",
            id="container configuration",
        ),
    ],
)
def test_a_failure_is_told_in_one_sentence(status: dict[str, Any], message: str) -> None:
    assert told(pod(**status)) == Outcome("failed", message)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"initContainerStatuses": [container(state={"running": {}})]}, "fetching the weights"),
        (
            {
                "initContainerStatuses": [
                    container(state={"terminated": {"exitCode": 0}}),
                    container("adapter-a", state={"running": {}}),
                ]
            },
            "fetching the adapter a",
        ),
        (
            {
                "initContainerStatuses": [container(state={"terminated": {"exitCode": 0}})],
                "containerStatuses": [container("phi", state={"running": {}})],
            },
            "loading the model",
        ),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]},
            "cannot be scheduled: 0/3 nodes are available",
        ),
    ],
)
def test_a_wait_says_for_what(status: dict[str, Any], words: str) -> None:
    found = told(pod(**status))
    assert found.state == "waiting"
    assert words in found.message


STARTED = "2026-11-30 14:00:00,120 INFO The weights are there."
ANSWERS = "2026-11-30 14:00:09,001 INFO kaito_serving.server: The model answers."
TRACEBACK = "Traceback (most recent call last):\n  File x, line 1, in main\nValueError: no config"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (ANSWERS, ""),
        (f"{STARTED}\n{ANSWERS}", ""),
        (f"Loading checkpoint shards: 100%\n{ANSWERS}\nsome afterthought", ""),
        (f"{ANSWERS}\n(ServeReplica pid=70) INFO 2026-11-30 14:01:00,000 a -- GET /health 200", ""),
        ("[WARNING]  (1234) : Server default/s1 is UP", ""),
        (f"{STARTED}\n2026-11-30 14:00:03,000 ERROR CUDA out of memory\n{ANSWERS}", "CUDA out of memory"),
        ("[ALERT]    (1234) : cannot bind socket", "(1234) : cannot bind socket"),
        (f"{STARTED}\n{TRACEBACK}", "ValueError: no config"),
        (f"{TRACEBACK}\n{STARTED}", "ValueError: no config"),
        (f"  File x, line 1, in main\nKeyError: 7\n{STARTED}", "KeyError: 7"),
        (f"{STARTED}\nFatal Python error: Segmentation fault", "Fatal Python error: Segmentation fault"),
        (TRACEBACK, "ValueError: no config"),
        ("the weights hold no config.json", "the weights hold no config.json"),
        ("panic: a Go program\n\ngoroutine 1 [running]:\n", "goroutine 1 [running]:"),
        ("", ""),
    ],
)
def test_of_a_log_only_errors_are_a_failures_words(log: str, words: str) -> None:
    assert sentence(log) == words


def test_a_server_that_runs_again_is_no_failure_because_of_what_it_last_logged() -> None:
    last = {"terminated": {"exitCode": 137, "reason": "Error", "message": f"{STARTED}\n{ANSWERS}\n"}}
    again = container("phi", state={"running": {}}, lastState=last)
    done = container(state={"terminated": {"exitCode": 0}})
    found = told(pod(initContainerStatuses=[done], containerStatuses=[again]))
    assert found == Outcome("waiting", "Pod phi-1: loading the model")
    ended = container("phi", state=last)
    found = told(pod(initContainerStatuses=[done], containerStatuses=[ended]))
    assert found == Outcome("failed", "Pod phi-1: container phi: it ended with exit code 137 (Error)")


def test_the_schedulers_afterthoughts_are_left_out() -> None:
    said = (
        "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/3 nodes "
        "are available: 3 Preemption is not helpful for scheduling."
    )
    found = told(pod(conditions=[{"type": "PodScheduled", "status": "False", "message": said}]))
    assert found.message.endswith("cannot be scheduled: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")


def test_a_missing_secret_is_read_from_the_kubelets_event() -> None:
    found = told(pod(), u='MountVolume.SetUp failed for volume "x" : secret "pull" not found')
    assert found.state == "failed"
    assert 'secret "pull" not found' in found.message


@pytest.mark.parametrize(
    ("event", "secret"),
    [
        ('MountVolume.SetUp failed for volume "secret-push" : secret "push" not found', "push"),
        ('MountVolume.SetUp failed for volume "x" : references non-existent secret key: .dockerconfigjson', ""),
        ('MountVolume.SetUp failed for volume "x" : configmap "training" not found', ""),
    ],
)
def test_only_a_missing_secret_is_asked_for_by_name(event: str, secret: str) -> None:
    message = told(pod(), u=event).message
    asked = f"; create the Secret {secret} in the namespace models, the Pod then goes on by itself"
    assert message.startswith(f"Pod phi-1: {event}")
    assert message.endswith(asked if secret else event)


def test_a_missing_secret_of_a_variable_is_asked_for_by_name() -> None:
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}}
    message = told(pod(containerStatuses=[container("phi", state=waiting)])).message
    assert message == (
        'Pod phi-1: container phi: CreateContainerConfigError: secret "hub" not found; '
        "create the Secret hub in the namespace models, the Pod then goes on by itself"
    )


def test_an_image_that_cannot_be_pulled_without_its_secret_names_it() -> None:
    known = {
        "u": "Unable to retrieve some image pull secrets (own, other); attempting to pull the image may not succeed."
    }
    found = explain([unpulled("ErrImagePull", "rpc error: code = Unknown desc = 401")], {}, pull_secrets=known)
    assert found == Outcome(
        "failed",
        f"{CANNOT}: 401; create the Secrets own, other in the namespace models, the Pod then goes on by itself",
    )
    # An image that anybody may pull needs none of them.
    running = pod(containerStatuses=[container("phi", state={"running": {}})])
    assert explain([running], {}, pull_secrets=known) == Outcome("waiting", "Pod phi-1: loading the model")


def test_ready_and_leaving_pods_have_nothing_to_tell() -> None:
    ready = pod(conditions=[{"type": "Ready", "status": "True"}])
    leaving = pod(initContainerStatuses=[container(**crashed("old"))])
    leaving["metadata"]["deletionTimestamp"] = "2026-01-02T12:00:00Z"
    assert explain([ready, leaving], {}) is None


def test_a_failure_goes_before_a_wait() -> None:
    waiting = pod(initContainerStatuses=[container(state={"running": {}})])
    failing = pod(initContainerStatuses=[container(**crashed("broken"))])
    failing["metadata"] = {"name": "phi-2", "uid": "v"}
    assert told(waiting, failing).message == "Pod phi-2: init container weights: broken"


NOT_FOUND = (
    'rpc error: code = NotFound desc = failed to pull and unpack image "r.io/x:1": failed to resolve reference '
    '"r.io/x:1": r.io/x:1: not found'
)
CANNOT = "Pod phi-1: container phi: image r.io/x:1 cannot be pulled"


@pytest.mark.parametrize(
    ("reason", "message", "cause"),
    [
        ("ErrImagePull", NOT_FOUND, ": r.io/x:1: not found"),
        ("ImagePullBackOff", f'Back-off pulling image "r.io/x:1": ErrImagePull: {NOT_FOUND}', ": r.io/x:1: not found"),
        ("ErrImagePull", "read tcp 10.0.0.4:51234->10.0.0.9:443: reset", ": read tcp 10.0.0.4->10.0.0.9:443: reset"),
        ("ImagePullBackOff", 'Back-off pulling image "r.io/x:1"', ""),
    ],
)
def test_an_image_that_cannot_be_pulled_is_told_in_one_stable_form(reason: str, message: str, cause: str) -> None:
    assert told(unpulled(reason, message)) == Outcome("failed", CANNOT + cause)


def test_a_kubelet_that_only_backs_off_does_not_take_the_cause_back() -> None:
    tried = unpulled("ErrImagePull", "rpc error: code = NotFound desc = r.io/x:1: not found")
    waiting = unpulled("ImagePullBackOff", 'Back-off pulling image "r.io/x:1"')
    known = pull_errors([tried], {})
    assert explain([waiting], {}, pull_errors=known) == Outcome("failed", f"{CANNOT}: r.io/x:1: not found")
    assert pull_errors([waiting], known) == known
    # Of another Pod, or of a container that runs, nothing is remembered.
    assert pull_errors([pod(initContainerStatuses=[container(state={"running": {}})])], known) == {}
    assert pull_errors([], known) == {}


REFUSED = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy devices present"}


def test_a_pod_that_was_refused_as_a_whole_is_told_until_its_successor_is_there() -> None:
    refused = pod(**REFUSED)
    assert told(refused) == Outcome("failed", "Pod phi-1: UnexpectedAdmissionError: no healthy devices present")
    successor = pod(initContainerStatuses=[container(state={"running": {}})])
    successor["metadata"] = {"name": "phi-2", "uid": "v"}
    assert told(refused, successor) == Outcome("waiting", "Pod phi-2: fetching the weights")
