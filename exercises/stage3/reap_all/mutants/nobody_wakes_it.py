def _serve_once(self):
    for record in self._workers.values():
        record.process.advance_stop()
    for descriptor, _ in self._poll.poll():
        if handler := self._handlers.get(descriptor):
            handler()
    for record in list(self._workers.values()):
        if (exit_code := record.process.poll()) is not None:
            self._retire(record, exit_code)
