"""How long a leader leads whose test does not ask for it."""

LONG = {
    "LEADER_ELECTION_LEASE_DURATION": "60s",
    "LEADER_ELECTION_RENEW_DEADLINE": "50s",
}
"""Environment of a controller that keeps its lease on a machine that stands still for 20 s."""
