"""An OCI registry: references, where they are fetched from (mirrors), credentials, challenges, reading and writing.

image.py and push.py use it. It knows registries' wire format, not what the artifacts are.
"""
