"""Commands of init containers: bring model weights and adapters from a registry, a hub or a volume, and check them.

``registry/`` speaks to OCI registries, ``transfer/`` is the HTTP below; the modules here unpack, check and package.
``python -m kaito_hooks.artifacts --help`` lists the commands. Nothing here needs a shell, root or credentials of the
cluster.
"""
