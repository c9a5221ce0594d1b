def wait(channels, timeout=None):
    channels = list(channels)
    if ended := [channel for channel in channels if channel._ended is not None]:
        return ended
    poller = select.poll()
    for channel in channels:
        poller.register(channel, select.POLLIN)
    ready = {number for number, _ in poller.poll(timeout and max(timeout, 0) * 1000)}
    return [channel for channel in channels if channel.fileno() in ready]
