def advance(self, nbytes):
    self.want = self.want[nbytes:]
    if self.want:
        return None
    if self._kind is None:
        self._expect(*_decode_prelude(self._part))
        return None
    kind = self._kind
    self._expect(PRELUDE.size, kind=None)
    try:
        return Frame(kind, json.loads(self._part))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a body that is no JSON: {error}") from error
