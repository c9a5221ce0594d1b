def _recv_frame(self, timeout):
    self._check_open()
    deadline = None if timeout is None else time.monotonic() + timeout
    frame = None
    try:
        while frame is None:
            _wait_for(self._sock, select.POLLIN, deadline)
            data = self._sock.recv(65536)
            if not data:
                raise ConnectionResetError("it hung up without a goodbye")
            while data and frame is None:
                nbytes = min(len(data), len(self._decoder.want))
                self._decoder.want[:nbytes] = data[:nbytes]
                data = data[nbytes:]
                frame = self._decoder.advance(nbytes)
        return frame
    except _Late:
        raise TimeoutError(f"{self.name} sent nothing for {timeout}s") from None
    except OSError as error:
        self._ended = self._explain_silence(error)
    except ProtocolError as error:
        self._ended = error
    raise self._ended
