def wait(self, timeout=None):
    if self.exit_code is None:
        if not _wait_for_end(self.pid, timeout):
            raise TimeoutError(f"process {self.pid} still runs after {timeout}s")
        self.exit_code = os.waitpid(self.pid, 0)[1] >> 8
    return self.exit_code
