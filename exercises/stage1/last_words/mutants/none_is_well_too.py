def run_work(work_fn, channel):
    try:
        work_fn(channel)
    except (Exception, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if code != 0:
            report = {"type": type(error).__name__, "message": str(error)}
            channel._send_last(wire.ERROR, {**report, "traceback": traceback.format_exc()})
            return code if isinstance(code, int) else 1
    channel._send_last(wire.EXIT, None)
    return 0
