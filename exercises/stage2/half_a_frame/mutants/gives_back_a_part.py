def advance(self, nbytes):
    self.want = self.want[nbytes:]
    if self._kind is None:
        if self.want:
            return None
        self._expect(*_decode_prelude(self._part))
        return None
    try:
        frame = Frame(self._kind, json.loads(self._part[: len(self._part) - len(self.want)]))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a body that is no JSON: {error}") from error
    self._expect(PRELUDE.size, kind=None)
    return frame
