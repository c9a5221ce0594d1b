def run_work(work_fn, channel):
    failed = None
    try:
        work_fn(channel)
    except (Exception, SystemExit) as error:
        failed = error
    code = failed.code if isinstance(failed, SystemExit) else int(failed is not None)
    if code:
        report = {"type": type(failed).__name__, "message": str(failed)}
        channel._send_last(wire.ERROR, {**report, "traceback": traceback.format_exc()})
        return code if isinstance(code, int) else 1
    channel._send_last(wire.EXIT, None)
    return 0
