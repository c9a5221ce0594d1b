"""Stage 4: servers on many nodes, started over ssh, as one cluster."""
