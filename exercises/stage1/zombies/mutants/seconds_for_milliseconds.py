def _wait_for_end(pid, timeout):
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(None if timeout is None else max(timeout, 0)))
    finally:
        os.close(pidfd)
