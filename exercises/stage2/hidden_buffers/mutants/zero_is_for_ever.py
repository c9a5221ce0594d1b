def wait(channels, timeout=None):
    channels = list(channels)
    ended = {channel for channel in channels if channel._ended is not None}
    poller = select.poll()
    for channel in {*channels} - ended:
        poller.register(channel, select.POLLIN)
    milliseconds = max(timeout, 0.001) * 1000 if timeout else None
    ready = {number for number, _ in poller.poll(0 if ended else milliseconds)}
    return [channel for channel in channels if channel in ended or channel.fileno() in ready]
