"""Deterministic simulation of what does no I/O: the same seed, the same world, on every machine.

`strangers` is a server's front door with many clients at once; `frames` is a conversation cut
anywhere. Both run the package's own code; the sockets, the loop and the clock are made up.
"""
