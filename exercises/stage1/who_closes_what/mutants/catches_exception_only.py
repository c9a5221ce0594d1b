def fork(run):
    sys.stdout.flush()
    pid = os.fork()
    if pid != 0:
        return Process(pid)
    os.setpgid(0, 0)
    try:
        code = run()
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)
