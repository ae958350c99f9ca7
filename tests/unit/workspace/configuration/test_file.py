from datetime import time
from pathlib import Path

import pytest

from kaito_hooks.workspace.configuration.errors import SettingsError
from kaito_hooks.workspace.configuration.file import load, process, read
from kaito_hooks.workspace.configuration.settings import Check, Window, Workloads


def test_the_charts_configuration_is_read() -> None:
    settings = read(
        {
            "nodeAPI": "NodeClaim",
            "nodeClaim": {
                "nodeClassRef": {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"},
                "extraRequirements": [{"key": "a", "operator": "In", "values": ["b"]}],
                "diskRequestKey": "",
            },
            "images": {"hooks": "h:1", "serving": {"cpu": "s:1"}, "variant": "cpu", "pullSecrets": ["p"]},
            "presetRegistry": "r.io/presets/",
            "registries": {"mirrors": {"Docker.io/": "http://m/A"}, "plainHTTP": ["M:5000"], "caBundle": "PEM"},
            "proxy": {"httpProxy": "http://p:1", "httpsProxy": "http://p:2", "noProxy": ["10.0.0.0/8"]},
            "huggingFaceEndpoint": "https://hub.example.com",
            "serving": {"resources": {"limits": {"memory": "1Gi"}}, "extraArgs": ["--x"], "extraEnv": []},
            "tuning": {
                "pushDeadline": "24h",
                "download": {"allowedPrivateCIDRs": ["10.0.0.0/8"]},
                "check": {"enabled": False, "maxBytes": "500Mi", "timeout": "30s", "deadline": "90m", "resources": {}},
            },
            "steps": {"resources": {"limits": {"memory": "2Gi"}}},
            "workloads": {
                "tolerations": [{"key": "team", "operator": "Exists"}],
                "upgrade": "rolling",
                "maxUnavailable": 3,
                "window": {"days": ["Sat", "Sun"], "start": "22:00", "duration": "6h"},
            },
            "networkPolicy": {"enabled": False},
            "timeouts": {
                "claimReady": "20m",
                "nodeNotReady": "2m",
                "nodeIdle": "20m",
                "gpuPlugin": "90s",
                "buyBackoffMax": "1h30m",
            },
            "maxNodesPerWorkspace": 7,
            "workers": 2,
        },
        {"CLOUD_PROVIDER": "aws", "RELEASE_NAMESPACE": "kaito"},
    )
    assert settings.node_api == "NodeClaim"
    assert settings.node_claims.node_class.kind == "KWOKNodeClass"
    assert settings.node_claims.disk_request_key == ""
    assert settings.images.serving["cpu"] == "s:1"
    assert settings.preset_registry == "r.io/presets"
    assert settings.registries.mirrors == {"docker.io": "http://m/A"}
    assert settings.registries.plain_http == ("m:5000",)
    assert (settings.proxy.http, settings.proxy.https) == ("http://p:1", "http://p:2")
    assert settings.proxy.no_proxy == ("10.0.0.0/8",)
    assert settings.hugging_face_endpoint == "https://hub.example.com"
    assert settings.tuning.push_deadline == 86400
    assert settings.tuning.check == Check(False, 500 * 1024**2, 30, {}, deadline=5400)
    assert settings.steps.resources == {"limits": {"memory": "2Gi"}}
    assert settings.network_policy is False
    assert settings.timeouts.claim_ready == 1200
    assert settings.workloads == Workloads(
        ({"key": "team", "operator": "Exists"},), "rolling", 3, Window(frozenset({5, 6}), time(22), 21600)
    )
    assert (settings.timeouts.gpu_plugin, settings.timeouts.buy_backoff_max) == (90, 5400)
    assert (settings.timeouts.node_not_ready, settings.timeouts.node_idle) == (120, 1200)
    assert settings.max_nodes_per_workspace == 7
    assert (settings.cloud, settings.release_namespace, settings.workers) == ("aws", "kaito", 2)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"nodeApi": "Machine"}, "nodeApi is not known; known keys are"),
        ({"images": {"servings": {}}}, "images.servings is not known"),
        ({"timeouts": {"gpuPlugin": "soon"}}, "timeouts.gpuPlugin is 'soon', not a duration such as 30s"),
        ({"nodeAPI": "Karpenter"}, "nodeAPI is 'Karpenter', not one of Machine, NodeClaim, none"),
        ({"workers": 0}, "workers is 0, not a whole number above 0"),
        ({"workers": True}, "workers is True"),
        ({"serving": []}, "serving is [], not a mapping"),
        ({"networkPolicy": {"enabled": "yes"}}, "networkPolicy.enabled is 'yes', not true or false"),
        ({"images": {"serving": {"gpu": "x"}}}, "images.serving.gpu"),
        ({"workloads": {"upgrade": "auto"}}, "workloads.upgrade is 'auto', not one of manual, rolling"),
        ({"workloads": {"maxUnavailable": 0}}, "workloads.maxUnavailable is 0, not a whole number above 0"),
        ({"workloads": {"window": {"days": ["Monday"]}}}, "workloads.window.days is ['Monday'], not a list of days"),
        ({"workloads": {"window": {"start": "24:00"}}}, "workloads.window.start is '24:00', not a time of the day"),
        (
            {"workloads": {"window": {"start": "22:00", "duration": "0s"}}},
            "workloads.window.duration is '0s', not a duration above 0 such as 4h: the window would never open",
        ),
        (
            {"workloads": {"window": {"start": "22:00"}}},
            "workloads.window.duration is missing; give a duration above 0",
        ),
        ("text", "the document is 'text', not a mapping"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(document: object, words: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(document, {})
    assert words in str(error.value)


@pytest.mark.parametrize("window", [{}, {"days": ["Mon"], "start": "", "duration": "4h"}])
def test_without_a_start_there_is_no_window(window: dict[str, object]) -> None:
    assert read({"workloads": {"window": window}}, {}).workloads == Workloads()


def test_a_window_without_days_is_open_every_day() -> None:
    window = read({"workloads": {"window": {"start": "22:00", "duration": "1h"}}}, {}).workloads.window
    assert window == Window(frozenset(range(7)), time(22), 3600)


def test_a_missing_or_broken_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read the configuration"):
        load(tmp_path / "none.yaml", {})
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(SettingsError, match="is no YAML"):
        load(broken, {})


def test_leader_election_needs_a_namespace_unless_it_is_off() -> None:
    with pytest.raises(SettingsError, match="LEADER_ELECTION_NAMESPACE"):
        process({})
    assert process({"DISABLE_LEADER_ELECTION": "true"}).leader_election is None
    election = process({"LEADER_ELECTION_NAMESPACE": "kaito", "LEADER_ELECTION_NAME": "x"}).leader_election
    assert election is not None
    assert (election.namespace, election.name) == ("kaito", "x")
    assert (election.lease_duration, election.renew_deadline, election.retry_period) == (15, 10, 2)


def test_the_lease_is_as_long_as_the_environment_says() -> None:
    slow = {
        "LEADER_ELECTION_NAMESPACE": "kaito",
        "LEADER_ELECTION_LEASE_DURATION": "1m",
        "LEADER_ELECTION_RENEW_DEADLINE": "50s",
        "LEADER_ELECTION_RETRY_PERIOD": "300ms",
    }
    election = process(slow).leader_election
    assert election is not None
    assert (election.lease_duration, election.renew_deadline, election.retry_period) == (60, 50, 0.3)
    with pytest.raises(SettingsError, match="LEADER_ELECTION_RENEW_DEADLINE: '50' is not a duration such as 15s"):
        process(slow | {"LEADER_ELECTION_RENEW_DEADLINE": "50"})
    with pytest.raises(SettingsError, match=r"lease_duration > renew_deadline > retry_period > 0, not 60, 70, 0\.3"):
        process(slow | {"LEADER_ELECTION_RENEW_DEADLINE": "70s"})


def test_every_address_is_listened_on_unless_one_is_named() -> None:
    off = {"DISABLE_LEADER_ELECTION": "true"}
    assert process(off).bind_address == ""
    assert process(off | {"BIND_ADDRESS": "::1"}).bind_address == "::1"


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="METRICS_PORT is 'http', not a port number"):
        process({"DISABLE_LEADER_ELECTION": "true", "METRICS_PORT": "http"})
