def fork(run):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            run()
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    return Process(pid)
