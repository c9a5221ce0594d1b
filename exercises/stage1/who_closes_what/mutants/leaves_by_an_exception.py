def fork(run):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = run()
        except Exception:
            traceback.print_exc()
        sys.exit(code)
    return Process(pid)
