def _prove(key, role, *transcript):
    text = json.dumps(transcript, sort_keys=True).encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest()
