def run_work(work_fn, channel):
    try:
        code = work_fn(channel) or 0
    except (Exception, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if code:
            report = {"type": type(error).__name__, "message": str(error)}
            channel._send_last(wire.ERROR, {**report, "traceback": traceback.format_exc()})
            return code if isinstance(code, int) else 1
    channel._send_last(wire.EXIT, None)
    return code
