def wait_until_ready(self, deadline: float) -> str | None:
    """Read stdout up to the ready line; return what is wrong, or None."""
    poller = select.poll()
    poller.register(self._stdout, select.POLLIN)
    received = b""
    while poller.poll(max(deadline - time.monotonic(), 0) * 1000):
        data = os.read(self._stdout.fileno(), 1 << 16)
        received += data
        # Whatever a login shell may print comes before the marker.
        _, found, rest = (one.encode() for one in received.decode().partition(self._marker))
        if found and b"\n" in rest:
            report = json.loads(rest.partition(b"\n")[0])
            self._host, self._port = (
                self.config.address or report.get("host"),
                report.get("port"),
            )
            return f"{self.label}: {report['error']}" if "error" in report else None
        if not data or len(received) > READY_NOISE_BYTES_MAX:
            break
    self._logger.join(1.0)
    said = "; ".join(self._last_lines) or "it said nothing"
    return f"{self.label}: its server did not get ready; it said: {said}"
