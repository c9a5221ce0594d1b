def fork(run: Callable[[], int]) -> Process:
    """Run a function in a forked child, which ends with the exit code that it returns."""
    sys.stdout.flush()  # else the child would write what is in the buffer a second time
    pid = os.fork()
    if pid != 0:
        return Process(pid)
    code = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C in a terminal goes to the parent's group, which will tell us
        code = run()
        code = code if code is None else code & 0xFF
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # a child never returns into its parent's code
