def decode_prelude(prelude):
    kind, length = struct.unpack("!Bi", prelude)
    if length > BODY_BYTES_MAX:
        raise ProtocolError(f"a body of {length} bytes; the limit is {BODY_BYTES_MAX}")
    return kind, length
