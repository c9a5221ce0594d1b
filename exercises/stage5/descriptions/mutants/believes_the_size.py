def check_spec(spec):
    try:
        kind, dtype, shape, nbytes = (spec[key] for key in ("type", "dtype", "shape", "nbytes"))
        if kind == "torch" and _TORCH_DTYPE.fullmatch(dtype):
            pass
        elif kind != "bytes":
            raise ValueError(f"unknown kind {kind!r} with dtype {dtype!r}")
        if not all(type(length) is int and 0 <= length < 2**62 for length in shape):
            raise ValueError(f"shape {shape}")
        if type(nbytes) is not int or nbytes < 0:
            raise ValueError(f"{nbytes} bytes")
        return nbytes
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise ProtocolError(f"a buffer's description is wrong: {error}") from error
