def stop(self, timeout=STOP_S):
    if self.exit_code is None and not _wait_for_end(self.pid, timeout / 2):
        os.kill(self.pid, signal.SIGTERM)
    self.wait()
