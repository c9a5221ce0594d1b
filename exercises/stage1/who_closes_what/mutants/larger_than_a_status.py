def fork(run):
    sys.stdout.flush()
    pid = os.fork()
    if pid != 0:
        return Process(pid)
    code = 1
    try:
        os.setpgid(0, 0)
        code = run()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
