"""Stage 3: a server that forks a worker for every client that holds the key."""
