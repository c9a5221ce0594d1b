def advance(self, nbytes):
    self.want = self.want[nbytes:]
    if self.want:
        return None
    if self._kind is None:
        self._expect(*_decode_prelude(self._part))
        return None
    frame = Frame(self._kind, json.loads(self._part))
    self._expect(PRELUDE.size, kind=None)
    return frame
