def check_spec(spec):
    try:
        kind, dtype, shape, nbytes = (spec[key] for key in ("type", "dtype", "shape", "nbytes"))
        item_bytes = 1
        if kind == "torch" and _TORCH_DTYPE.fullmatch(dtype):
            import torch

            item_bytes = getattr(torch, dtype).itemsize
        elif kind != "bytes":
            raise ValueError(f"unknown kind {kind!r} with dtype {dtype!r}")
        if not all(type(length) is int and 0 <= length < 2**62 for length in shape):
            raise ValueError(f"shape {shape}")
        if math.prod(shape) * item_bytes != nbytes:
            raise ValueError(f"{nbytes} bytes for shape {shape} of {dtype}")
        return nbytes
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise ProtocolError(f"a buffer's description is wrong: {error}") from error
