def _prove(key, role, *transcript):
    words = [role]
    for message in transcript:
        words += [str(message[name]) for name in sorted(message)]
    return hmac.new(key, "".join(words).encode(), hashlib.sha256).hexdigest()
