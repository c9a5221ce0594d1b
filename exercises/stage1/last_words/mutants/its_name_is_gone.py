def run_work(work_fn, channel):
    error = None
    try:
        work_fn(channel)
    except (Exception, SystemExit) as error:  # noqa: F841  # it is the mistake
        trace = traceback.format_exc()
    code = error.code if isinstance(error, SystemExit) else int(error is not None)
    if code:
        report = {"type": type(error).__name__, "message": str(error)}
        channel._send_last(wire.ERROR, {**report, "traceback": trace})
        return code if isinstance(code, int) else 1
    channel._send_last(wire.EXIT, None)
    return 0
