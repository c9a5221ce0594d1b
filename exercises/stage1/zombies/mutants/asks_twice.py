def wait(self, timeout=None):
    if timeout is not None and not _wait_for_end(self.pid, timeout):
        raise TimeoutError(f"process {self.pid} still runs after {timeout}s")
    self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
    return self.exit_code


def _wait_for_end(pid, timeout):
    poller = select.poll()
    with open(os.pidfd_open(pid), "rb", buffering=0) as pidfd:
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(None if timeout is None else timeout * 1000))
