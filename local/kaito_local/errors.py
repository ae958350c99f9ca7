"""Errors of the local cluster. Each says in one sentence what is wrong and what to do.

LocalError
├── MissingPrerequisite   the machine lacks something: root, Go, a Debian package, memory, disk, a free address
├── BuildError            a program, an image or a model could not be made
├── StartError            a component did not become ready
├── CommandError          a program that we ran (kubectl, helm, apt-get) failed; its own words are in the text
└── UsageError            the command line asks for something that does not exist
"""


class LocalError(Exception):
    """Anything that stops a `kaito` command; the text is shown as it is."""


class MissingPrerequisite(LocalError):
    """The machine lacks something that the command needs."""


class BuildError(LocalError):
    """A program, an image or a model could not be made."""


class StartError(LocalError):
    """A component of the cluster did not become ready."""


class CommandError(LocalError):
    """A program that we ran failed; its own words are in the text."""


class UsageError(LocalError):
    """The command line asks for something that does not exist."""
