def run_work(work_fn: Callable[[Channel], Any], channel: Channel) -> int:
    """Run a work function in its worker, report how it ended, and return the exit status."""
    try:
        work_fn(channel)
    except (Exception, SystemExit) as error:
        code = getattr(error, "code", 1)
        if code:  # sys.exit() and sys.exit(0) are a way to return, and nothing else is
            report = {"type": type(error).__name__, "message": str(error)}
            channel._send_last(wire.ERROR, {**report, "traceback": traceback.format_exc()})
            return code if isinstance(code, int) else 1
    channel._send_last(wire.EXIT, None)
    return 0
