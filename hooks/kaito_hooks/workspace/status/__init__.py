"""How far a Workspace is, for its user: ``conditions`` writes the status, ``pods`` and ``pod_refusals`` explain Pods.

``progress`` asks a Pod over HTTP, ``poller`` does so beside the reconciles, ``server_state`` reads a model server's
answer; all else is pure. ``children/``, ``tuning/`` and the modules at the top import it.
"""
