def decode_prelude(prelude):
    kind, length = PRELUDE.unpack(prelude)
    if length > BODY_BYTES_MAX:
        raise ValueError(f"a body of {length} bytes; the limit is {BODY_BYTES_MAX}")
    return kind, length
