def _prove(key, role, *transcript):
    lines = [role]
    for message in transcript:
        lines += [f"{name}={json.dumps(str(message[name]))}" for name in sorted(message)]
    return hmac.new(key, "\n".join(lines).encode(), hashlib.sha256).hexdigest()
