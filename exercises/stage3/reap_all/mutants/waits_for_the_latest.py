def _serve_once(self):
    steps = [record.process.advance_stop() for record in self._workers.values()]
    seconds = max((step for step in steps if step is not None), default=None)
    for descriptor, _ in self._poll.poll(None if seconds is None else seconds * 1000 + 1):
        if handler := self._handlers.get(descriptor):
            handler()
    for record in list(self._workers.values()):
        if (exit_code := record.process.poll()) is not None:
            self._retire(record, exit_code)
