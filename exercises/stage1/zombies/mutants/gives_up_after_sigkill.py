def stop(self, timeout=STOP_S):
    for number in (signal.SIGTERM, signal.SIGKILL):
        if self.exit_code is None and not _wait_for_end(self.pid, timeout / 2):
            os.kill(self.pid, number)
    if self.exit_code is None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.exit_code = os.waitstatus_to_exitcode(status)
