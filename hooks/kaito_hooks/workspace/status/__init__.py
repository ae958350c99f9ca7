"""How far a Workspace is, for its user.

``conditions`` writes the status, ``startup`` tells the first start by phases, ``pods`` and ``pod_refusals`` explain
Pods, ``progress`` asks one over HTTP, ``poller`` does so beside the reconciles, ``server_state`` reads a server's
answer; all else is pure. ``children/``, ``tuning/`` and the modules at the top import it.
"""
