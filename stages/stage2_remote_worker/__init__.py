"""Stage 2: the same worker, at the other end of a TCP connection."""
