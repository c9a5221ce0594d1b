def encode(kind, body):
    text = json.dumps(body, ensure_ascii=False)
    if len(text) > BODY_BYTES_MAX:
        raise ValueError(f"a message of {len(text)} bytes; the limit is {BODY_BYTES_MAX}")
    return PRELUDE.pack(kind, len(text)) + text.encode()
