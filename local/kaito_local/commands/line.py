"""The command line of `kaito`: a whole local cluster, from nothing to nothing.

kaito up | env | status | aks pools|fault|requests|upgrade|... | demo | chat URL | check-data FILE... | down

Each takes --name NAME where it means a cluster.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from pathlib import Path

from kaito_local.cluster import preflight
from kaito_local.cluster.local_cluster import LocalCluster, UpOptions
from kaito_local.cluster.state import DEFAULT_NAME, State, cluster_folder
from kaito_local.commands import aks, chat, check_data, demo, env, status
from kaito_local.errors import LocalError
from kaito_local.machine.progress import Progress


def run(given: list[str]) -> int:
    """Does what the arguments say; the exit code. Raises KeyboardInterrupt, SystemExit (a bad command line)."""
    options = parser().parse_args(given)
    preflight.complete_path()
    progress = Progress.to(sys.stderr)
    try:
        cluster = LocalCluster(cluster_folder(options.name), progress=progress)
        command: Callable[[argparse.Namespace, LocalCluster, list[str]], int] = options.run
        return command(options, cluster, given)
    except LocalError as error:
        print(f"kaito: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"kaito: {error.filename} is not yours to use; try again with sudo -E", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" for {error.filename}" if error.filename else ""
        print(f"kaito: no room is left on the disk{where}; make some, then try again", file=sys.stderr)
        return 1


def _up(options: argparse.Namespace, cluster: LocalCluster, given: list[str]) -> int:
    if not options.control_plane_only:
        preflight.become_root(given)
    cluster.up(_up_options(options))
    cluster.progress(f'{cluster.name} is up; to use it: eval "$(kaito env{_name_option(cluster)})"')
    return 0


def _demo(options: argparse.Namespace, cluster: LocalCluster, given: list[str]) -> int:
    preflight.become_root(given)
    return demo.run(cluster, _up_options(options))


def _down(options: argparse.Namespace, cluster: LocalCluster, given: list[str]) -> int:
    state = State.load(cluster.directory)
    if state is not None and not state.control_plane_only:
        preflight.become_root(given)
    was_running = cluster.running()
    cluster.stop(purge=options.purge)
    cluster.progress(f"{cluster.name} is down" if was_running else f"{cluster.name} was not running")
    return 0


def _up_options(options: argparse.Namespace) -> UpOptions:
    return UpOptions(
        charts=not options.no_charts,
        control_plane_only=getattr(options, "control_plane_only", False),
        settings=tuple(options.set),
        values=tuple(options.values),
        weights=tuple(options.weights),
    )


def parser() -> argparse.ArgumentParser:
    """What reads the command line of `kaito`; ``run`` among what it has read does what is asked for."""
    kaito = argparse.ArgumentParser(prog="kaito", description="A whole local cluster, cloud included, on this machine.")
    commands = kaito.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Callable[..., int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--name", default=DEFAULT_NAME, help=f"which cluster (default: {DEFAULT_NAME})")
        added.set_defaults(run=run)
        return added

    up = command("up", "start the cluster, or what is missing of it", _up)
    up.add_argument("--control-plane-only", action="store_true", help="no nodes, no registry, no cloud; needs no root")
    demo_ = command("demo", "start it, run the quick start, ask the model a question", _demo)
    for with_charts in (up, demo_):
        with_charts.add_argument("--no-charts", action="store_true", help="do not install the controllers")
        with_charts.add_argument(
            "--set", action="append", default=[], metavar="CHART.PATH=VALUE", help="a value of a chart (repeatable)"
        )
        with_charts.add_argument(
            "--values",
            action="append",
            default=[],
            type=Path,
            metavar="FILE",
            help="values whose top-level keys are the charts' names (repeatable)",
        )
        with_charts.add_argument(
            "--weights",
            action="append",
            default=[],
            metavar="PRESET=FOLDER",
            help="serve your own copy of a model's weights instead of tiny ones (repeatable)",
        )
    command("env", "print shell lines for eval", env.run)
    command("status", "what runs, with pids, addresses, log files", status.run)
    aks.add_arguments(command("aks", "the emulated cloud", aks.run))
    chat.add_arguments(command("chat", "talk with a model behind OpenAI's API", chat.run))
    check_data.add_arguments(
        command("check-data", "whether a data set can be trained on, before a GPU is bought", check_data.run)
    )
    down = command("down", "stop the cluster, leaving nothing behind", _down)
    down.add_argument("--purge", action="store_true", help="remove its state, too")
    return kaito


def _name_option(cluster: LocalCluster) -> str:
    return "" if cluster.name == DEFAULT_NAME else f" --name {cluster.name}"
