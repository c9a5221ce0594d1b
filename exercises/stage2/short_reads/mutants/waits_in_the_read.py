def _recv_frame(self, timeout: float | None) -> wire.Frame:
    self._check_open()
    deadline = None if timeout is None else time.monotonic() + timeout
    frame = None
    try:
        while frame is None:
            _wait_for(self._sock, select.POLLIN, deadline)
            nbytes = self._sock.recv_into(
                self._decoder.want, 0, socket.MSG_WAITALL
            )  # may be less than it wants
            if nbytes == 0:
                raise ConnectionResetError("it hung up without a goodbye")
            frame = self._decoder.advance(nbytes)
        return frame
    except _Late:
        raise TimeoutError(f"{self.name} sent nothing for {timeout}s") from None
    except OSError as error:
        self._ended = self._explain_silence(error)
    except ProtocolError as error:
        self._ended = error
    raise self._ended
