def stop(self, timeout=STOP_S):
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _wait_for_end(self.pid, timeout / 2):
            os.kill(self.pid, number)
    self.wait()
