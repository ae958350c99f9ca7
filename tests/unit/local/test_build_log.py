"""What a person is told out of the log of an image's build."""

from __future__ import annotations

import pytest

from kaito_local.images.build import _UNREACHED, _follow
from kaito_local.machine.progress import Step

_PIP_RETRY = "WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection "
_PIP_OBJECT = "<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f0b7c2d1f50>"


def told(*lines: str) -> str:
    """The live line, without the time at its end, after these lines of a log."""
    step = Step("building", 0.0, clock=lambda: 0.0)
    for line in lines:
        _follow(step, f"{line}\n")
    return step.line().removesuffix(" · 0 s")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param("STEP 3/7: COPY constraints.txt /tmp/", "building · 2 of 7 layers", id="layer-of-buildah"),
        pytest.param("[2/3] STEP 1/5: FROM scratch AS wheels", "building · 0 of 5 layers", id="layer-of-a-stage"),
        pytest.param(
            "Collecting torch==2.13.0+cpu (from -r /tmp/requirements.txt (line 5))",
            "building · collecting torch==2.13.0+cpu",
            id="pip-resolves",
        ),
        pytest.param(
            "Collecting ray[serve] (from -r requirements.txt)", "building · collecting ray[serve]", id="pip-extra"
        ),
        pytest.param("Collecting numpy<3,>=1.17 (from transformers)", "building · collecting numpy<3", id="pip-bounds"),
        pytest.param(
            "  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (821.0 MB)",
            "building · downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl",
            id="pip-downloads",
        ),
        pytest.param("Installing collected packages: mpmath, torch", "building · installing", id="pip-installs"),
        pytest.param("I: running apt-get update...", "building · running apt-get update", id="mmdebstrap"),
        pytest.param("I: installing essential packages...", "building · installing essential packages", id="essential"),
        pytest.param("step 30 of 200, loss 1.25", "building · 30 of 200 steps", id="training"),
        pytest.param("COMMIT kaito-torch-cpu", "building", id="commit"),
        pytest.param("W: no such key", "building", id="warning-of-mmdebstrap"),
        pytest.param("Successfully installed torch-2.13.0", "building", id="pip-is-done"),
        pytest.param("a STEP 1/2: in the middle", "building", id="not-at-the-beginning"),
        pytest.param("", "building", id="empty-line"),
    ],
)
def test_a_line_of_the_log_says_how_far_the_build_is(line: str, said: str) -> None:
    assert told(line) == said


def test_a_package_is_told_within_its_layer_and_forgotten_with_it() -> None:
    lines = ["STEP 5/7: RUN pip install torch", "Collecting torch", "some noise"]
    assert told(*lines) == "building · 4 of 7 layers · collecting torch"
    assert told(*lines, "STEP 6/7: ENV A=b") == "building · 5 of 7 layers"


@pytest.mark.parametrize(
    ("line", "estimated"),
    [("STEP 3/4: RUN x", False), ("step 100 of 200", True)],
    ids=["layers-differ", "steps-of-a-training-take-the-same-time"],
)
def test_only_the_rest_of_a_training_is_estimated(line: str, estimated: bool) -> None:
    step = Step("building", 0.0, clock=lambda: 60.0)
    _follow(step, line)
    assert ("more" in step.line()) is estimated


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            f"{_PIP_RETRY}broken by 'NewConnectionError('{_PIP_OBJECT}: Failed to establish a new connection: "
            "[Errno -3] Temporary failure in name resolution')': /simple/torch/",
            id="pip-no-name-server",
        ),
        pytest.param(
            f"{_PIP_RETRY}broken by 'NewConnectionError('{_PIP_OBJECT}: Failed to establish a new connection: "
            "[Errno 101] Network is unreachable')': /simple/torch/",
            id="pip-no-route",
        ),
        pytest.param(
            f"{_PIP_RETRY}broken by 'ConnectTimeoutError({_PIP_OBJECT}, 'Connection to index.example.org timed out. "
            "(connect timeout=15)')': /simple/torch/",
            id="pip-silence",
        ),
        pytest.param(
            f"{_PIP_RETRY}broken by 'ProxyError('Cannot connect to proxy.', NewConnectionError('{_PIP_OBJECT}: Failed "
            "to establish a new connection: [Errno 111] Connection refused'))': /simple/torch/",
            id="pip-proxy-is-down",
        ),
        pytest.param(
            f"{_PIP_RETRY}broken by 'ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 403 "
            "Forbidden'))': /simple/torch/",
            id="pip-proxy-refuses",
        ),
        pytest.param("  Temporary failure resolving 'packages.example.org'", id="apt-no-name-server"),
        pytest.param(
            "E: Failed to fetch http://packages.example.org/debian/dists/bookworm/InRelease  Could not connect to "
            "packages.example.org:80 (151.101.2.132), connection timed out",
            id="apt-silence",
        ),
        pytest.param(
            "W: Failed to fetch http://packages.example.org/debian/dists/bookworm/InRelease  Cannot initiate the "
            "connection to packages.example.org:80 (2a04:4e42::644). - connect (101: Network is unreachable)",
            id="apt-no-route",
        ),
        pytest.param("curl: (6) Could not resolve host: download.pytorch.org", id="curl-no-name"),
        pytest.param(
            "curl: (7) Failed to connect to download.pytorch.org port 443 after 3 ms: Couldn't connect to server",
            id="curl-refused",
        ),
        pytest.param("curl: (28) Connection timed out after 10001 milliseconds", id="curl-silence"),
    ],
)
def test_a_line_that_means_no_network_is_known(line: str) -> None:
    assert _UNREACHED.search(line)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("ERROR: No matching distribution found for torch==99.0", id="pip-no-such-version"),
        pytest.param("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", id="pip-hashes"),
        pytest.param("ERROR: Could not install packages due to an OSError: [Errno 28] No space left", id="disk"),
        pytest.param("E: Unable to locate package no-such-package", id="apt-no-such-package"),
        pytest.param("E: Failed to fetch http://packages.example.org/x.deb  404  Not Found", id="apt-no-such-file"),
        pytest.param("curl: (22) The requested URL returned error: 404", id="curl-no-such-page"),
        pytest.param("curl: (60) SSL certificate problem: self-signed certificate", id="untrusted-certificate"),
        pytest.param("Failed to connect to bus: No such file or directory", id="systemd"),
        pytest.param("ModuleNotFoundError: No module named 'kaito_hooks'", id="python"),
    ],
)
def test_a_line_that_means_something_else_is_not_taken_for_the_network(line: str) -> None:
    assert not _UNREACHED.search(line)


@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("curl: (6) Could not resolve host: index.example.org", "index.example.org"),
        ("Temporary failure resolving 'packages.example.org'", "packages.example.org"),
        ("'Connection to index.example.org timed out. (connect timeout=15)'", "index.example.org"),
    ],
    ids=["curl", "apt", "pip"],
)
def test_the_host_that_was_not_reached_is_part_of_what_is_said(line: str, host: str) -> None:
    found = _UNREACHED.search(line)
    assert found
    assert host in found[0]
