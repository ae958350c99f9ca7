"""The emulator as one object."""

from __future__ import annotations

import json
import os
import ssl
from types import TracebackType
from typing import Any

from kaito_local.aks.clock import Agenda, Clock
from kaito_local.aks.endpoints.control import Control
from kaito_local.aks.endpoints.front import Front
from kaito_local.aks.endpoints.server import Endpoints, Server
from kaito_local.aks.endpoints.tokens import Tokens
from kaito_local.aks.faults import Fault, FaultBook, fault
from kaito_local.aks.machines.bare_nodes import BareNodes
from kaito_local.aks.machines.machines import Machines, NoMachines
from kaito_local.aks.pools.agentpools import AgentPools
from kaito_local.aks.pools.pool import Pool, Store
from kaito_local.aks.pools.records import Bill, Ledger, Lines
from kaito_local.aks.settings import Limits, Settings
from kaito_local.errors import UsageError
from kaito_local.machine.pki import Authority, write_private
from kaito_local.machine.ports import free_ports, is_free

_ENDPOINTS = "endpoints.json"


class Emulator:
    """An emulated cloud that runs until `close`.

    >>> with Emulator(Settings(directory=tmp_path, clock_speed=0)) as cloud:
    ...     cloud.fault("throttled", pool="ws*")
    ...     cloud.advance(600)

    Started again in the same directory it goes on where it was: same addresses, authority, pools, tokens and logs.
    """

    def __init__(self, settings: Settings, *, machines: Machines | None = None) -> None:
        self.settings = settings
        folder = settings.directory
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = Clock(speed=settings.clock_speed, file=folder / "clock.json")
        self.agenda = Agenda(self.clock)
        self.ledger = Ledger(folder / "ledger.jsonl", clock=self.clock)
        self.faults = FaultBook(folder / "faults.json")
        self.tokens = Tokens(settings.identity, folder=folder)
        self._log = Lines(folder / "requests.jsonl")
        self.machines = machines or _machines(settings, clock=self.clock, agenda=self.agenda)
        self.pools = AgentPools(
            settings,
            clock=self.clock,
            agenda=self.agenda,
            store=Store(folder / "state"),
            ledger=self.ledger,
            faults=self.faults,
            machines=self.machines,
        )
        front = Front(
            settings, clock=self.clock, pools=self.pools, tokens=self.tokens, faults=self.faults, log=self._log
        )
        port, control_port = _ports(settings)
        authority = Authority.open(folder / "pki", name="kaito-local-azure-ca")
        self.endpoints = Endpoints(
            arm=f"https://{settings.address}:{port}",
            control=f"http://{settings.control_address}:{control_port}",
            authority=authority.certificate.resolve(),
        )
        self._server = Server(settings.address, port, answer=front.answer, tls=_tls(authority, settings))
        try:
            control = Control(
                settings,
                clock=self.clock,
                pools=self.pools,
                ledger=self.ledger,
                faults=self.faults,
                tokens=self.tokens,
                log=self._log,
                endpoints=self.endpoints,
            )
            self._control = Server(settings.control_address, control_port, answer=control.answer)
        except BaseException:
            self._server.server_close()
            raise

    def start(self) -> Emulator:
        """Goes on with unfinished operations and begins to answer."""
        self.pools.resume()
        self.agenda.start()
        self._server.start()
        self._control.start()
        record = {
            "arm": self.endpoints.arm,
            "control": self.endpoints.control,
            "authority": str(self.endpoints.authority),
            "pid": os.getpid(),
        }
        write_private(self.settings.directory / _ENDPOINTS, json.dumps(record).encode(), mode=0o644)
        return self

    def close(self) -> None:
        """Stops answering; pools, machines and Nodes stay as they are."""
        self._server.close()
        self._control.close()
        self.pools.fleet.close()
        self.agenda.close()
        if isinstance(self.machines, BareNodes):
            self.machines.close()

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fault(self, name: str = "", /, **fields: Any) -> Fault:
        """Scripts something to go wrong: a ready-made fault by name, or one of `Fault`'s fields."""
        return self.faults.add(fault(name, **fields))

    def advance(self, seconds: float) -> None:
        """Moves the cloud's clock forward and waits until what became due has happened."""
        self.clock.advance(seconds)
        self.settle()

    def settle(self) -> None:
        """Waits until everything that is due has happened, machines included."""
        self.pools.settle()

    def agent_pools(self) -> list[Pool]:
        """Every pool that exists, oldest first."""
        return self.pools.listing()

    def requests(self, *, after: int = 0) -> list[dict[str, Any]]:
        """The request log from entry ``after`` on: see `Front.answer` for the fields."""
        return list(self._log.read(after=after))

    def bills(self) -> list[Bill]:
        """What every pool that ever was has cost."""
        return self.ledger.bills()

    def set_limits(self, limits: Limits) -> None:
        """Replaces quotas, capacities and restrictions; pools that exist keep what they have."""
        self.pools.limits = limits


def _tls(authority: Authority, settings: Settings) -> ssl.SSLContext:
    hosts = dict.fromkeys(["localhost", "127.0.0.1", settings.address, *settings.hosts])
    pair = authority.server("server", hosts=hosts)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def _ports(settings: Settings) -> tuple[int, int]:
    """The configured ports, else those of the last run if they are free, else new ones; two different ones."""
    kept: dict[str, Any] = {}
    file = settings.directory / _ENDPOINTS
    if file.exists():
        kept = json.loads(file.read_text())
    chosen: list[int] = []
    for wanted, key, address in (
        (settings.port, "arm", settings.address),
        (settings.control_port, "control", settings.control_address),
    ):
        port = wanted or int(str(kept.get(key, ":0")).rpartition(":")[2])
        if not port or (not wanted and not is_free(port, address=address)):
            # Nobody listens on the first one yet, so it may be found free again.
            port = next(port for port in free_ports(2, address=address) if port not in chosen)
        chosen.append(port)
    return chosen[0], chosen[1]


def _machines(settings: Settings, *, clock: Clock, agenda: Agenda) -> Machines:
    if settings.machines == "none":
        return NoMachines()
    if settings.machines == "bare":
        if settings.kubeconfig is None:
            raise UsageError("machines: bare needs the key kubeconfig")
        delay = settings.durations.node_ready
        return BareNodes(settings.kubeconfig, clock=clock, agenda=agenda, ready_delay=delay)
    from kaito_local.aks.machines.node_source import node_machines

    return node_machines(settings.nodes)
