def wait(channels, timeout=None):
    channels = list(channels)
    seconds = 0.0 if any(channel._ended for channel in channels) else timeout
    poller = select.poll()
    for channel in channels:
        poller.register(channel, select.POLLIN)
    ready = {number for number, _ in poller.poll(seconds and max(seconds, 0) * 1000)}
    return [channel for channel in channels if channel._ended or channel.fileno() in ready]
