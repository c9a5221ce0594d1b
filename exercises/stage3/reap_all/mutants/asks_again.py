def poll(self):
    if _wait_for_end(self.pid, 0):
        self.wait(0)
    return self.exit_code
