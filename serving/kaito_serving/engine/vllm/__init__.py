"""vLLM behind the seam: a server of its own, in a process below the replica, spoken to over loopback HTTP.

vLLM's stable surface is its command line and its OpenAI server, not its Python, and it lives in an environment of its
own: nothing here imports it.
"""
