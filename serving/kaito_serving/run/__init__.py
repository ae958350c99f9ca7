"""What runs the server: options, the Ray Serve deployment, supervision and signals.

The only room that knows Ray, and the only one that puts HTTP and an engine together.
"""
