def stop(self, timeout=STOP_S):
    time = __import__("time")
    for number in (signal.SIGTERM, signal.SIGKILL):
        time.sleep(timeout / 2)
        if not _wait_for_end(self.pid, 0):
            os.kill(self.pid, number)
    self.wait()
