"""``python -m kaito_hooks.helm apply-crds | guard-uninstall | preflight``: one sentence on failure.

Exit status 2: that is how it is; 1: it could not be found out, and another try may.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kaito_hooks.helm.crds import apply_crds
from kaito_hooks.helm.errors import HookError
from kaito_hooks.helm.guard import guard_claims, guard_workspaces
from kaito_hooks.helm.preflight import preflight
from kaito_hooks.runtime import ApiError, Client, Key

TERMINATION_LOG = Path("/dev/termination-log")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one hook; its exit status is that of the Job's container."""
    chosen = _parser().parse_args(arguments)
    try:
        _run(chosen, Client.load(user_agent="kaito-helm"))
    except (HookError, ApiError) as error:
        sys.stderr.write(f"{error}\n")
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(str(error), encoding="utf-8")
        return 2 if isinstance(error, HookError) else 1
    return 0


def _run(chosen: argparse.Namespace, client: Client) -> None:
    if chosen.command == "apply-crds":
        apply_crds(client, chosen.directory, leave_foreign=chosen.leave_foreign, report=_say)
    elif chosen.command == "preflight":
        plugin = Key(*chosen.device_plugin) if chosen.device_plugin else None
        preflight(client, node_api=chosen.node_api, device_plugin=plugin, report=_say)
    elif chosen.workspaces:
        guard_workspaces(client, undo=chosen.undo)
    else:
        guard_claims(client, undo=chosen.undo)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kaito_hooks.helm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    crds = commands.add_parser("apply-crds", help="apply the chart's CRDs before an upgrade")
    crds.add_argument("--directory", type=Path, required=True, help="folder with the CRDs' YAML files")
    crds.add_argument("--leave-foreign", action="store_true", help="leave what somebody else installed as it is")
    guard = commands.add_parser("guard-uninstall", help="stop while only the controller can give nodes back")
    which = guard.add_mutually_exclusive_group(required=True)
    which.add_argument("--workspaces", action="store_true")
    which.add_argument("--claims", action="store_true")
    guard.add_argument("--undo", required=True, help="the command that brings helm's release back")
    test = commands.add_parser("preflight", help="look for what a Workspace needs")
    test.add_argument("--node-api", choices=["Machine", "NodeClaim", "none"], required=True)
    test.add_argument("--device-plugin", nargs=2, metavar=("NAMESPACE", "NAME"), help="the chart's own DaemonSet")
    return parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
