"""Everything small that runs in the cluster: two controllers, init-container commands, Helm hooks. No torch here."""
