def advance(self, nbytes):
    self.want = self.want[nbytes:]
    if self.want:
        return None
    if self._kind is None:
        length, kind = _decode_prelude(self._part)
        self._expect(PRELUDE.size + length, kind)
        return None
    try:
        frame = Frame(self._kind, json.loads(self._part))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a body that is no JSON: {error}") from error
    self._expect(PRELUDE.size, kind=None)
    return frame
