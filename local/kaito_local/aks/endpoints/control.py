"""The control port: what tests and `kaito aks` ask of a running emulator, as JSON over plain HTTP.

GET    /healthz
GET    /endpoints                     addresses and the authority's file
GET    /pools                         agent pools as ARM shows them, with ledger fields
POST   /pools/NAME/ACTION             an action of somebody else: upgrade, reimage, stop, start, delete, or label with
                                      {"labels": {...}} that replace the pool's; answered with the pool as it is then
GET    /requests[?after=N]            the request log as JSON lines
GET    /ledger                        what every pool that ever was has cost
GET    /ledger/events                 the life of every pool
GET    /faults, POST /faults, DELETE /faults[/ID]
                                      POST: fields of `Fault`; ``name`` = a ready-made one
GET    /faults/ready-made             names of faults.yaml
GET    /limits, PUT /limits           fields of `Limits`
PUT    /locks                         {"locks": "none" | "pool" | "cluster"}
GET    /clock, POST /clock            {"advance": seconds}: answered when what became due has happened
POST   /tokens/revoke                 every token that was given out becomes invalid
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from kaito_local.aks.clock import Clock
from kaito_local.aks.endpoints.front import Answer, Request
from kaito_local.aks.endpoints.server import Endpoints
from kaito_local.aks.endpoints.tokens import Tokens
from kaito_local.aks.errors import Refusal
from kaito_local.aks.faults import FaultBook, fault, ready_made
from kaito_local.aks.pools.agentpools import AgentPools
from kaito_local.aks.pools.pool import RUNNING, STOPPED, Pool
from kaito_local.aks.pools.records import Ledger, Lines
from kaito_local.aks.settings import Limits, Settings, build
from kaito_local.errors import UsageError


class Control:
    """Answers the control port; a call that means nothing gets 400 with a sentence."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        pools: AgentPools,
        ledger: Ledger,
        faults: FaultBook,
        tokens: Tokens,
        log: Lines,
        endpoints: Endpoints,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pools = pools
        self._ledger = ledger
        self._faults = faults
        self._tokens = tokens
        self._log = log
        self._endpoints = endpoints

    def answer(self, request: Request) -> Answer:
        """Never raises."""
        try:
            body = json.loads(request.body) if request.body else {}
            return self._answer(request, body)
        except (UsageError, ValueError, TimeoutError) as error:
            return Answer(400, {"error": str(error)})
        except Refusal as refusal:
            return Answer(refusal.status, {"error": f"{refusal.body['code']}: {refusal.body['message']}"})

    def _answer(self, request: Request, body: dict[str, Any]) -> Answer:
        parts = [part for part in request.path.split("/") if part]
        match (request.method, *parts):
            case ("GET", "healthz"):
                return Answer(200, {"ok": True})
            case ("GET", "endpoints"):
                endpoints = self._endpoints
                authority = str(endpoints.authority)
                return Answer(200, {"arm": endpoints.arm, "control": endpoints.control, "authority": authority})
            case ("GET", "pools"):
                return Answer(200, [pool.body(self._settings) for pool in self._pools.listing()])
            case ("POST", "pools", name, action):
                return Answer(200, self._act(name, action, body).body(self._settings))
            case ("GET", "requests"):
                entries = self._log.read(after=int(request.query.get("after", "0")))
                text = "".join(json.dumps(entry) + "\n" for entry in entries)
                return Answer(200, text, {"Content-Type": "application/x-ndjson"})
            case ("GET", "ledger"):
                return Answer(200, [dataclasses.asdict(bill) for bill in self._ledger.bills()])
            case ("GET", "ledger", "events"):
                return Answer(200, self._ledger.events())
            case ("GET", "faults"):
                return Answer(200, [dataclasses.asdict(entry) for entry in self._faults.waiting()])
            case ("GET", "faults", "ready-made"):
                return Answer(200, sorted(ready_made()))
            case ("POST", "faults"):
                added = self._faults.add(fault(body.pop("name", ""), **body))
                return Answer(201, dataclasses.asdict(added))
            case ("DELETE", "faults"):
                self._faults.remove()
                return Answer(200, [])
            case ("DELETE", "faults", identifier):
                self._faults.remove(identifier)
                return Answer(200, [])
            case ("GET", "limits"):
                return Answer(200, dataclasses.asdict(self._pools.limits))
            case ("PUT", "limits"):
                limits: Limits = build(Limits, body, where="limits")
                self._pools.limits = limits
                return Answer(200, dataclasses.asdict(limits))
            case ("PUT", "locks"):
                locks = body.get("locks")
                if locks not in ("none", "pool", "cluster"):
                    raise UsageError(f"locks must be none, pool or cluster, not {locks!r}")
                self._pools.locks = locks
                return Answer(200, {"locks": locks})
            case ("GET", "clock"):
                return Answer(200, {"now": self._clock.text(), "speed": self._clock.speed})
            case ("POST", "clock"):
                self._clock.advance(float(body.get("advance", 0.0)))
                self._pools.settle()
                return Answer(200, {"now": self._clock.text(), "speed": self._clock.speed})
            case ("POST", "tokens", "revoke"):
                self._tokens.revoke()
                return Answer(200, {})
            case _:
                return Answer(404, {"error": f"the control port has no {request.method} {request.path}"})

    def _act(self, name: str, action: str, body: dict[str, Any]) -> Pool:
        """The pool after the action was accepted. Raises Refusal, UsageError."""
        match action:
            case "upgrade":
                return self._pools.upgrade(name)[0]
            case "reimage":
                return self._pools.reimage(name)
            case "stop":
                return self._pools.change(name, powerState={"code": STOPPED})[0]
            case "start":
                return self._pools.change(name, powerState={"code": RUNNING})[0]
            case "label":
                labels = body.get("labels")
                if not isinstance(labels, dict):
                    raise UsageError(f"labels must be a mapping, not {labels!r}")
                return self._pools.change(name, nodeLabels=labels)[0]
            case "delete":
                deleted = self._pools.delete(name)
                return deleted[0] if deleted else self._pools.get(name)
            case _:
                raise UsageError(
                    f"an agent pool can be upgraded, reimaged, stopped, started, labelled and deleted, not {action!r}"
                )
