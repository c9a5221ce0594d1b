def wait(channels, timeout=None):
    channels = list(channels)
    ended = {channel for channel in channels if channel._ended is not None}
    seconds = 0.0 if ended else timeout
    asked = [channel for channel in channels if channel not in ended]
    ready = select.select(asked, [], [], seconds)[0]
    return [channel for channel in channels if channel in ended or channel in ready]
