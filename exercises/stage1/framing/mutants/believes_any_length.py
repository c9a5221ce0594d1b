def decode_prelude(prelude):
    return PRELUDE.unpack(prelude)
