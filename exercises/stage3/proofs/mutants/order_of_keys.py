def _prove(key, role, *transcript):
    role_key = hmac.digest(key, role.encode(), hashlib.sha256)
    text = json.dumps(transcript).encode()
    return hmac.new(role_key, text, hashlib.sha256).hexdigest()
