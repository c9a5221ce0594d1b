def __init__(self, work_fn, *, name=None):
    ours, theirs = socket.socketpair()

    def run():
        ours.close()
        close_inherited()
        return run_work(work_fn, Channel(theirs, name="coordinator"))

    self._process = process.fork(run())
    theirs.close()
    super().__init__(ours, name=name or f"worker {self._process.pid}")
