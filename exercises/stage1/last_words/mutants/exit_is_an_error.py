def run_work(work_fn, channel):
    try:
        work_fn(channel)
    except BaseException as error:
        report = {"type": type(error).__name__, "message": str(error)}
        channel._send_last(wire.ERROR, {**report, "traceback": traceback.format_exc()})
        return 1
    channel._send_last(wire.EXIT, None)
    return 0
