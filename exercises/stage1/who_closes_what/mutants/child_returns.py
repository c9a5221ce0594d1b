def fork(run):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        run()
        sys.stdout.flush()
    return Process(pid)
