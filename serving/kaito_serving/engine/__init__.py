"""What computes tokens: `base` is the seam, in vLLM's vocabulary; each engine behind it has a module or a room.

Engines know nothing of HTTP, of chat templates or of the command line.
"""
