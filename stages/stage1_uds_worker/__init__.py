"""Stage 1: a worker is a forked process at the other end of a socketpair."""
