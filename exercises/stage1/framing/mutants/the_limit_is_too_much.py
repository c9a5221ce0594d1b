def encode(kind, body):
    data = json.dumps(body).encode()
    if len(data) >= BODY_BYTES_MAX:
        raise ValueError(f"a message of {len(data)} bytes; the limit is {BODY_BYTES_MAX}")
    return PRELUDE.pack(kind, len(data)) + data
