"""`kaito aks`: what the emulated cloud has, what it was asked, what somebody else does there, what is to go wrong."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kaito_local.cluster.local_cluster import LocalCluster
from kaito_local.cluster.state import State
from kaito_local.errors import UsageError

_EXAMPLES = """\
examples:
  kaito aks fault quota-vcpu                              a ready-made one, once
  kaito aks fault throttled --times 3 --pool 'ws*'
  kaito aks fault --status 400 --code BadRequest --message 'no such size'
  kaito aks fault --async --code AllocationFailed --message 'no capacity'     the accepted PUT fails later
  kaito aks fault --method DELETE --async --code DeleteVMSSAgentPoolFailed    the pool stays, and is Failed
  kaito aks fault --quota standardNCSv3Family=6           vCPUs of a family; "regional" for all, none for no limit
  kaito aks fault --max-pools 2                           agent pools per cluster (100)
  kaito aks fault --list        what is still to go wrong, and the names of the ready-made ones
  kaito aks fault --clear       nothing any more"""
_ACTIONS = {
    "upgrade": "give a pool's machines the newest node image, with a surge machine",
    "reimage": "reimage a pool's machines under their Nodes, as node auto-repair does",
    "stop": "stop a pool: its machines and Nodes go, the pool stays",
    "start": "start a stopped pool: it gets new machines",
    "label": "replace a pool's labels",
    "delete": "delete a pool as somebody else than the provisioner",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs pools, requests and fault, and the actions on a pool. --name may be given before or after the verb."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, **more: Any) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, **more)
        added.add_argument("--name", default=argparse.SUPPRESS, help="which cluster")
        return added

    verb("pools", "agent pools as a JSON list")
    requests = verb("requests", "the request log as JSON lines")
    requests.add_argument("--after", type=int, default=0, metavar="N", help="only what came after the first N requests")
    for action, text in _ACTIONS.items():
        acting = verb(action, text)
        acting.add_argument("pool", metavar="POOL", help="the agent pool's name")
        if action == "label":
            acting.add_argument(
                "labels", nargs="*", metavar="KEY=VALUE", help="all labels that it has then (none: no label)"
            )
    fault = verb(
        "fault",
        "script what goes wrong next",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fault.add_argument("fault", nargs="?", default="", metavar="READY-MADE", help="the name of a ready-made fault")
    fault.add_argument("--method", help="GET, PUT, DELETE, LIST or * (default: PUT)")
    fault.add_argument("--pool", help="a shell pattern (default: every pool)")
    fault.add_argument("--nth", type=int, help="begins with the N-th request that matches")
    fault.add_argument("--times", type=int, help="how many requests meet it (default: 1; 0: all)")
    fault.add_argument("--status", type=int, help="HTTP status of the answer")
    fault.add_argument("--code", help="error code")
    fault.add_argument("--message", default="", help="error message")
    fault.add_argument("--async", dest="later", action="store_true", help="accept the request and fail the operation")
    fault.add_argument("--delay", type=float, help="seconds before the answer")
    fault.add_argument("--cut", choices=["before", "after"], help="close the connection before or after the effect")
    fault.add_argument("--quota", metavar="FAMILY=VCPUS", help="limit a family of sizes instead")
    fault.add_argument("--max-pools", type=int, metavar="N", help="limit the cluster's agent pools instead")
    fault.add_argument("--list", action="store_true", help="show the faults that wait")
    fault.add_argument("--clear", action="store_true", help="remove all faults and limits")


def run(options: argparse.Namespace, cluster: LocalCluster, given: list[str]) -> int:
    """Prints the emulator's answer. Raises UsageError when the cluster has no running emulator, or it refuses."""
    state = State.load(cluster.directory)
    if state is None or state.control_plane_only:
        raise UsageError(
            f"there is no cluster {cluster.name} with a cloud; start it with: kaito up --name {cluster.name}"
        )
    cloud = cluster.cloud
    if options.verb == "requests":
        print(cloud.control("GET", f"/requests?after={options.after}"), end="")
    elif options.verb == "pools":
        print(json.dumps(json.loads(cloud.control("GET", "/pools")), indent=2))
    elif options.verb in _ACTIONS:
        body = {"labels": labels_of(options.labels)} if options.verb == "label" else {}
        print(json.dumps(json.loads(cloud.control("POST", f"/pools/{options.pool}/{options.verb}", body)), indent=2))
    elif options.list:
        waiting = json.loads(cloud.control("GET", "/faults"))
        ready_made = json.loads(cloud.control("GET", "/faults/ready-made"))
        print(json.dumps({"waiting": waiting, "ready-made": ready_made}, indent=2))
    elif options.clear:
        cloud.control("DELETE", "/faults")
        cloud.control("PUT", "/limits", {})
    elif options.quota or options.max_pools is not None:
        limits = json.loads(cloud.control("GET", "/limits"))
        if options.quota:
            limits["quota"] = with_quota(limits["quota"], options.quota)
        if options.max_pools is not None:
            limits["pools"] = options.max_pools
        print(cloud.control("PUT", "/limits", limits))
    else:
        print(cloud.control("POST", "/faults", fault_of(options)))
    return 0


def fault_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options as the control port's ``POST /faults`` wants them. Raises UsageError for a fault that is none."""
    given = {key: getattr(options, key) for key in ("method", "pool", "nth", "delay", "cut")}
    fields: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if options.times is not None:
        fields["times"] = options.times or None
    error = {"code": options.code, "message": options.message}
    if options.later:
        if not options.code:
            raise UsageError("--async needs the --code that the operation fails with")
        fields["error"] = error
    elif options.status is not None:
        fields |= {"status": options.status, "body": {"error": error}}
    elif options.code:
        raise UsageError("--code needs a --status to be answered with, or --async to fail later")
    if not options.fault and not {"error", "status", "delay", "cut"} & set(fields):
        raise UsageError(
            "say what is to go wrong: a ready-made fault, --status, --async, --delay, --cut, --quota or --max-pools"
        )
    if options.fault:
        return {"name": options.fault, **fields}
    return {"method": "PUT", **fields}


def labels_of(settings: list[str]) -> dict[str, str]:
    """Labels given as ``KEY=VALUE``. Raises UsageError."""
    labels = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise UsageError(f"{setting}: write labels as KEY=VALUE")
        labels[key] = value
    return labels


def with_quota(quota: dict[str, int], setting: str) -> dict[str, int]:
    """``quota`` (vCPUs by family) with one limit set, or lifted by ``FAMILY=none``. Raises UsageError."""
    family, _, number = setting.partition("=")
    if not family or not (number == "none" or number.isdigit()):
        raise UsageError(f"--quota {setting}: write FAMILY=VCPUS, such as standardNCSv3Family=6, or FAMILY=none")
    rest = {key: value for key, value in quota.items() if key != family}
    return rest if number == "none" else {**rest, family: int(number)}
