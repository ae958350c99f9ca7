"""The gpu-provisioner: claims (Machine, NodeClaim) in, AKS agent pools and registered Nodes out.

One module per phase (finalizer, launch, registration, initialization, liveness, termination, collection, health), each
a function over a Claim and an ``Environment`` of injected clock, cloud and client; lifecycle.py puts them in order.
cloud.py is the seam to any cloud, aks.py the one behind it. Run as ``python -m kaito_hooks.provisioner``; nothing
imports it.
"""
