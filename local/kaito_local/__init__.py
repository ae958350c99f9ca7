"""A whole real Kubernetes cluster, cloud included, on one machine, and the `kaito` command that brings it up.

It may use only what a user could: manifests, charts, images. Nothing in hooks/, serving/ or tuning/ knows of it.
Rooms, each of which may use only those below it (pyproject.toml has the rule):

    commands   what each verb of `kaito` does and prints
    cluster    a local cluster, put together of its parts, and what it remembers
    aks        the emulated cloud: ARM and tokens over TLS; its agent pools are nodes
    nodes      real nodes in Linux namespaces, and the namespaces of their cluster
    images     what runs on nodes: images, model images, tiny weights
    machine    folders, processes, namespaces, addresses, certificates, Go programs, progress
    errors     what a user is told
"""
