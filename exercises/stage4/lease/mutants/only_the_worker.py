def keep_node():
    settings = json.loads(sys.stdin.buffer.readline())
    server = process.fork(lambda: serve_node(settings))
    pidfd = os.pidfd_open(server.pid)
    select.select([0, pidfd], [], [])
    os.kill(server.pid, signal.SIGTERM)
    select.select([pidfd], [], [], 2 * process.STOP_S)
    os.kill(server.pid, signal.SIGKILL)
    os.waitpid(server.pid, 0)
