def _recv_frame(self, timeout):
    self._check_open()
    deadline = None if timeout is None else time.monotonic() + timeout
    frame = None
    try:
        while frame is None:
            _wait_for(self._sock, select.POLLIN, deadline)
            frame = self._decoder.advance(self._sock.recv_into(self._decoder.want))
        return frame
    except _Late:
        raise TimeoutError(f"{self.name} sent nothing for {timeout}s") from None
    except OSError as error:
        self._ended = self._explain_silence(error)
    except ProtocolError as error:
        self._ended = error
    raise self._ended
