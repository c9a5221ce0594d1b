def encode(kind, body):
    data = json.dumps(body).encode()
    if len(data) > BODY_BYTES_MAX:
        raise ValueError(f"a message of {len(data)} bytes; the limit is {BODY_BYTES_MAX}")
    return struct.pack("BI", kind, len(data)) + data


def decode_prelude(prelude):
    kind, length = struct.unpack("BI", prelude)
    if length > BODY_BYTES_MAX:
        raise ProtocolError(f"a body of {length} bytes; the limit is {BODY_BYTES_MAX}")
    return kind, length
