def keep_node():
    threading = __import__("threading")
    settings = json.loads(sys.stdin.buffer.readline())
    server = threading.Thread(target=serve_node, args=(settings,), daemon=True)
    server.start()
    select.select([0], [], [])
