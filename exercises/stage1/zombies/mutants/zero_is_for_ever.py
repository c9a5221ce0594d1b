def _wait_for_end(pid, timeout):
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(timeout * 1000 if timeout else None))
    finally:
        os.close(pidfd)
