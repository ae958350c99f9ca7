"""The cloud as long as its cluster is this one: a wrong cluster name must cost nobody a machine.

The cloud says where the machines of the configured cluster lie, this cluster's Nodes say where theirs do. A Node that
lies there proves that both are the same, for the life of the process. Nodes that all lie elsewhere disprove it, and
then nothing that the cloud says of its machines concerns us.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner.cloud import CloudProvider, Instance, Order
from kaito_hooks.provisioner.errors import CloudError, ConfigurationError, WrongCluster
from kaito_hooks.provisioner.nodes import Nodes


class ClusterCloud(CloudProvider, Protocol):
    """A cloud that knows where its cluster's machines lie."""

    def provider_id_prefix(self) -> str:
        """What the providerID of every machine of the configured cluster begins with, in any case of letters."""

    def is_machine(self, provider_id: str) -> bool:
        """Whether a providerID says where in this kind of cloud a machine lies."""


class OwnCluster:
    """CloudProvider over another one, thread-safe.

    Without a proof ``list`` is refused, because the sweep gives up what belongs to nothing in it; the other verbs are
    refused only after a disproof, so that a cluster without a Node of the cloud can buy its first one.
    """

    def __init__(self, cloud: ClusterCloud, nodes: Nodes) -> None:
        self._cloud = cloud
        self._nodes = nodes
        self._prefix: str | None = None
        self._proven = False
        self._problem: str | None = None

    @property
    def node_label(self) -> str:
        """As the cloud's."""
        return self._cloud.node_label

    def problem(self) -> str | None:
        """Why the last look did not prove that the cluster is this one; None when it did, or before the first."""
        return self._problem

    def order(self, claim: Claim, now: datetime) -> Order:
        """As the cloud's."""
        return self._cloud.order(claim, now)

    def ensure(self, order: Order) -> Instance:
        """As the cloud's; ConfigurationError in another cluster."""
        self._refuse_if_disproven()
        return self._cloud.ensure(order)

    def get(self, name: str, *, max_age: float = 0.0) -> Instance | None:
        """As the cloud's; without ``max_age``, when an absence counts, ConfigurationError in another cluster."""
        if max_age <= 0:
            self._refuse_if_disproven()
        return self._cloud.get(name, max_age=max_age)

    def list(self) -> Sequence[Instance]:
        """As the cloud's; ConfigurationError, or why the cloud could not be asked, without a proof."""
        missing = self._look()
        if missing is not None:
            raise missing
        return self._cloud.list()

    def delete(self, instance: Instance) -> None:
        """As the cloud's; ConfigurationError in another cluster."""
        self._refuse_if_disproven()
        self._cloud.delete(instance)

    def _refuse_if_disproven(self) -> None:
        missing = self._look()
        if isinstance(missing, WrongCluster):
            raise missing

    def _look(self) -> CloudError | None:
        """What the proof lacks at this moment; None once there is one."""
        if self._proven:
            return None
        missing = self._compare()
        self._proven = missing is None
        self._problem = missing.message if missing is not None else None
        return missing

    def _compare(self) -> CloudError | None:
        try:
            prefix = self._prefix or self._cloud.provider_id_prefix()
        except CloudError as error:
            return error
        self._prefix = prefix
        machines = [machine for machine in self._nodes.provider_ids() if self._cloud.is_machine(machine)]
        if any(machine.lower().startswith(prefix.lower()) for machine in machines):
            return None
        if not machines:
            return ConfigurationError(
                "ClusterNotProven", f"no Node shows that the machines of this cluster lie in {prefix}"
            )
        return WrongCluster(
            "WrongCluster",
            f"the configured cluster is another one: its machines lie in {prefix}, but a Node of this cluster is "
            f"{machines[0]}; set settings.azure.clusterName, resourceGroup and subscriptionId to this cluster's",
        )
