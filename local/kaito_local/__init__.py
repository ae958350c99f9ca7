"""A whole real Kubernetes cluster, cloud included, on one Linux machine; the `kaito` command.

It may use only what a user could: manifests, charts, images. Nothing in hooks/, serving/ or tuning/ knows of it.
"""
