def encode(kind, body):
    data = json.dumps(body).encode()
    return PRELUDE.pack(kind, len(data)) + data
