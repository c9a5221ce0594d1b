def stop(self, timeout=STOP_S):
    if self.exit_code is None:
        os.kill(self.pid, signal.SIGTERM)
        if not _wait_for_end(self.pid, timeout):
            os.kill(self.pid, signal.SIGKILL)
    self.wait()
