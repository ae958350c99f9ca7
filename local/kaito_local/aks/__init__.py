"""An emulated Azure: token endpoint and ARM for the agent pools of one AKS cluster, over TLS with its own authority.

The unmodified Azure SDK for Python drives it. Tests use `Emulator` in their process; `python -m kaito_local.aks` is the
same as a process of its own, told what to do on a second port (`endpoints/control.py`).
"""

from kaito_local.aks.emulator import Emulator
from kaito_local.aks.endpoints.server import Endpoints
from kaito_local.aks.faults import Fault, MachineFault, fault, ready_made
from kaito_local.aks.machines.machines import Machines, MachineSpec, NoMachines
from kaito_local.aks.settings import Durations, Identity, Limits, Settings

__all__ = [
    "Durations",
    "Emulator",
    "Endpoints",
    "Fault",
    "Identity",
    "Limits",
    "MachineFault",
    "MachineSpec",
    "Machines",
    "NoMachines",
    "Settings",
    "fault",
    "ready_made",
]
