def run_work(work_fn, channel):
    code = 0
    try:
        work_fn(channel)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        report = {"type": type(error).__name__, "message": str(error)}
        channel._send_last(wire.ERROR, {**report, "traceback": traceback.format_exc()})
        return 1
    channel._send_last(wire.EXIT, None)
    return code
