"""Commands of init containers: bring model weights and adapters from a registry, a hub or a volume, and check them.

``python -m kaito_hooks.artifacts --help`` lists them. Nothing here needs a shell, root or credentials of the cluster.
"""
