"""What is on the wire: Workspace, Catalog, Claim (Machine or NodeClaim), labels, conditions.

Plain data and constants; imports nothing of ours, every other package may import it.
"""
