def fork(run):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = run()
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return Process(pid)
