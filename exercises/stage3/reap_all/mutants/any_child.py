def poll(self):
    if self.exit_code is None:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            self.exit_code = os.waitstatus_to_exitcode(status)
    return self.exit_code
