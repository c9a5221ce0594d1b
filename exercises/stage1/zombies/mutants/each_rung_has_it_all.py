def stop(self, timeout=STOP_S):
    for number in (signal.SIGTERM, signal.SIGKILL):
        if self.exit_code is None and not _wait_for_end(self.pid, timeout):
            os.kill(self.pid, number)
    self.wait()
