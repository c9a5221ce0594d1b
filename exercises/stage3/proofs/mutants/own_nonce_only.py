def _prove(key, role, *transcript):
    text = json.dumps([role, transcript[0]], sort_keys=True).encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest()
