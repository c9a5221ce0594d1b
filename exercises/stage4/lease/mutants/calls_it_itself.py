def keep_node():
    settings = json.loads(sys.stdin.buffer.readline())
    server = process.fork(serve_node(settings))
    select.select([0, os.pidfd_open(server.pid)], [], [])
    os.kill(server.pid, signal.SIGTERM)
    server.stop(2 * process.STOP_S)
