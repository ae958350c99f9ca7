"""The Ray Serve application that answers for a model: HTTP surfaces, engines, adapters, weights."""

from importlib import metadata


def version() -> str:
    """The version of this package."""
    try:
        return metadata.version("kaito")
    except metadata.PackageNotFoundError:
        return "unknown"
