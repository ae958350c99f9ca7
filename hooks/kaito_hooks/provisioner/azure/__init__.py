"""AKS behind the seam of cloud.py: agent pools over ARM, its errors, credentials, throttle and shared listing.

aks.py is the CloudProvider, agent_pool.py makes a claim's agent pool. Only server.py, which assembles the process,
imports this room; no phase knows Azure.
"""
