"""``python -m kaito_hooks.provisioner``: everything is configured by the environment."""

from __future__ import annotations

import logging
import os
import sys

from kaito_hooks.provisioner.configuration import Configuration, ConfigurationInvalid
from kaito_hooks.provisioner.server import build
from kaito_hooks.runtime import ApiError, Client, configure_logging, run_until_signal


def main() -> int:
    """Run until a signal; 0 = stopped, 1 = leadership lost, 2 = the environment is not usable."""
    try:
        configuration = Configuration.read(os.environ)
        configure_logging(configuration.log_level)
        # The SDK tells of every request and token; errors.py's sentences tell what matters of them.
        logging.getLogger("azure").setLevel(logging.ERROR)
        client = Client.load(user_agent="kaito-gpu-provisioner")
        manager = build(configuration, client)
    except (ConfigurationInvalid, ApiError, ValueError) as error:
        print(f"gpu-provisioner: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return run_until_signal(manager)


if __name__ == "__main__":
    # Threads that hang in a request must not keep a former leader alive.
    code = main()
    sys.stderr.flush()
    os._exit(code)
