"""The agent pools: their values and records, what AKS refuses, the operations on them and the machines that they boot.

agentpools.py is what ``endpoints/`` calls. It starts machines through the protocol of ``machines/`` alone.
"""
