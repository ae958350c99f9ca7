"""A whole local cluster, put together of its parts: control plane, registry, cloud emulator, DNS and charts.

What it remembers between commands is here, too.
"""
