"""Why a hook stops helm.

HookError
├── UnsafeUpgrade     a CRD of the new chart would lose stored objects
├── ForeignDefinition a CRD of this name belongs to another operator
├── ContestedField    somebody else applies a field of a CRD
├── StillInUse        uninstalling would leave nodes that nobody gives back
└── NotReady          something that a Workspace needs is not there
"""

from __future__ import annotations


class HookError(Exception):
    """One sentence for the person who called helm."""


class UnsafeUpgrade(HookError):
    """A CRD of the new chart does not serve a version that objects are stored in."""


class ForeignDefinition(HookError):
    """A CRD that the chart brings is there already, and not ours."""


class ContestedField(HookError):
    """A field of a CRD would change that somebody else applies again and again."""


class StillInUse(HookError):
    """Objects exist whose nodes only the controller gives back."""


class NotReady(HookError):
    """Something that a Workspace needs is missing."""
