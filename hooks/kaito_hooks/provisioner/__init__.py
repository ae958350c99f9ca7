"""The gpu-provisioner: claims (Machine, NodeClaim) in, AKS agent pools and registered Nodes out.

``phases/`` has what is done to a claim, lifecycle.py the order of it; machine.py and nodeclaim.py spell its conditions;
cloud.py is the seam to any cloud, ``azure/`` the one behind it; server.py assembles the process. Run as
``python -m kaito_hooks.provisioner``; nothing imports it.
"""
