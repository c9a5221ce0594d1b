def keep_node():
    settings = json.loads(sys.stdin.buffer.readline())
    server = process.fork(lambda: serve_node(settings))
    sys.stdin.buffer.read(1)
    os.kill(server.pid, signal.SIGTERM)
    server.stop(2 * process.STOP_S)
