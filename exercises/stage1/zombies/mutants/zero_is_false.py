def wait(self, timeout=None):
    if not self.exit_code:
        if not _wait_for_end(self.pid, timeout):
            raise TimeoutError(f"process {self.pid} still runs after {timeout}s")
        self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
    return self.exit_code
