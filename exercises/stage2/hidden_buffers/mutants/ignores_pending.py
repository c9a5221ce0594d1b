def wait(channels, timeout=None):
    channels = list(channels)
    poller = select.poll()
    for channel in channels:
        poller.register(channel, select.POLLIN)
    ready = {
        number for number, _ in poller.poll(None if timeout is None else max(timeout, 0) * 1000)
    }
    return [channel for channel in channels if channel._ended or channel.fileno() in ready]
