def _wait_for_end(pid, timeout):
    poller = select.poll()
    poller.register(os.pidfd_open(pid), select.POLLIN)
    return bool(poller.poll(None if timeout is None else max(timeout, 0) * 1000))
