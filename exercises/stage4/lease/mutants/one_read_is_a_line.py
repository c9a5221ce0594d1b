def keep_node() -> None:
    """Be a Cluster's node: settings are a line on stdin, which is the lease from then on.

    The server is a child of ours. So whatever keeps it busy, an import that takes long or never
    ends, somebody watches the lease, who does nothing else.
    """
    settings = json.loads(os.read(0, 65536))
    server = process.fork(lambda: serve_node(settings))
    select.select([0, os.pidfd_open(server.pid)], [], [])  # the end of the lease, or the server's
    os.kill(server.pid, signal.SIGTERM)  # it is not reaped yet, so the number is its own
    server.stop(2 * process.STOP_S)  # of which its workers may need half
