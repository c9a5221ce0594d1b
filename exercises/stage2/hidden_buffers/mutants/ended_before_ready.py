def wait(channels, timeout=None):
    channels = list(channels)
    ended = [channel for channel in channels if channel._ended is not None]
    poller = select.poll()
    for channel in channels:
        if channel not in ended:
            poller.register(channel, select.POLLIN)
    seconds = 0.0 if ended else timeout
    ready = {number for number, _ in poller.poll(seconds and max(seconds, 0) * 1000)}
    return ended + [one for one in channels if one not in ended and one.fileno() in ready]
