"""What a run with many claims bought and what it left behind, from the cloud's own records and the API server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kaito_hooks.provisioner.resources import CLAIMS, NODE
from kaito_hooks.runtime import Client
from kaito_local.aks import Emulator

CLAIM_UID = "kaito.sh/claim-uid"


@dataclass(frozen=True, slots=True)
class Account:
    """``created``: how many PUTs made a pool, by claim UID; ``flags``: what no careful provisioner asks of the cloud;
    ``pools``, ``nodes`` and ``claims`` are what is still there.
    """

    created: Mapping[str, int]
    flags: tuple[str, ...]
    pools: tuple[str, ...]
    nodes: tuple[str, ...]
    claims: tuple[str, ...]

    @classmethod
    def of(cls, cloud: Emulator, admin: Client) -> Account:
        """As things are; Nodes are those of agent pools."""
        requests = cloud.requests()
        made = [r for r in requests if r["method"] == "PUT" and r["status"] == 201]
        return cls(
            created=Counter(r["body"]["properties"]["nodeLabels"][CLAIM_UID] for r in made),
            flags=tuple(f"{r['method']} {r['pool']}: {flag}" for r in requests for flag in r["flags"]),
            pools=tuple(pool.name for pool in cloud.agent_pools()),
            nodes=tuple(n["metadata"]["name"] for n in admin.list(NODE, label_selector="agentpool").items),
            claims=tuple(c["metadata"]["name"] for resource in CLAIMS.values() for c in admin.list(resource).items),
        )

    @property
    def left(self) -> tuple[str, ...]:
        """What is still there: none of it should be once every claim was deleted."""
        return (*self.pools, *self.nodes, *self.claims)

    def problems(self, launched: Iterable[str]) -> list[str]:
        """What is wrong at the end of a run in which the claims with these UIDs got their machine."""
        return [
            *(f"{number} pools were made for claim {uid}" for uid, number in self.created.items() if number != 1),
            *(f"claim {uid} was launched without a pool" for uid in launched if uid not in self.created),
            *(f"agent pool {name} is left" for name in self.pools),
            *(f"Node {name} is left" for name in self.nodes),
            *(f"claim {name} is left" for name in self.claims),
            *self.flags,
        ]

    def told(self, launched: Iterable[str]) -> str:
        """The counts in a line."""
        made = sum(self.created.values())
        return (
            f"{made} pools created, {len(set(launched))} claims launched, {len(self.left)} leaks, "
            f"{len(self.flags)} flags"
        )
