def _prove(key, role, *transcript):
    text = json.dumps([role, *transcript], sort_keys=True).encode()
    return hashlib.sha256(key + text).hexdigest()
