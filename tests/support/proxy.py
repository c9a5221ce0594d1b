"""A TCP proxy on loopback that can be slow, go silent, cut a stream, or hang up."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType

CHUNK_BYTES = 64 * 1024


class Proxy:
    """Forward every connection to `target`, and misbehave on request.

    `port` is where to connect. `delay_s` is waited before each chunk of `chunk_bytes`. `silence()`
    stops forwarding and leaves both sides open, as a dead link does, until `resume()`.
    `up_bytes_max` and `down_bytes_max` reset the connection after that many bytes from the client,
    or to it. `edit(is_up, chunk)` gets each chunk, from the client if `is_up`, and returns what
    goes on in its place. `hang_up()` closes the present connections. With `brings_words` the target
    hears of a client together with its first words, as of one that is far away and speaks first.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        delay_s: float = 0.0,
        up_bytes_max: int | None = None,
        down_bytes_max: int | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        brings_words: bool = False,
        edit: Callable[[bool, bytes], bytes] = lambda is_up, chunk: chunk,
    ) -> None:
        self.target, self.brings_words = target, brings_words
        self.delay_s = delay_s
        self.up_bytes_max = up_bytes_max
        self.down_bytes_max = down_bytes_max
        self.chunk_bytes = chunk_bytes
        self.edit = edit
        self.silent = False
        self._closed = False
        self._connections: list[_Connection] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def silence(self) -> None:
        """Forward nothing more, and close nothing: both sides see a link that has gone dead."""
        self.silent = True

    def resume(self) -> None:
        """Forward again, what was held back first."""
        self.silent = False

    def hang_up(self, *, reset: bool = False) -> None:
        """Close every present connection; with `reset`, by RST instead of FIN."""
        for connection in list(self._connections):
            connection.hang_up(reset=reset)

    def close(self) -> None:
        """Stop listening, hang up, and wait for the threads."""
        self._closed = True
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        # The accepting thread ends first, so that no connection is added behind our back.
        while self._threads:
            self._threads.pop(0).join(timeout=10)
            self.hang_up()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:  # close() shut the listener down
                return
            try:
                words = b""
                if self.brings_words:
                    words = client.recv(self.chunk_bytes)
                    time.sleep(self.delay_s)
                server = socket.create_connection(self.target, timeout=5)
                server.sendall(words)
            except OSError:  # nobody is there: hang up, which is the most a proxy can say
                client.close()
                continue
            server.settimeout(None)
            connection = _Connection(self, client, server)
            self._connections.append(connection)
            self._start(connection.pump_up)
            self._start(connection.pump_down)


class _Connection:
    """One client's connection and the one to the target; the last of its two pumps closes both."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        self.hung_up = False
        self._pumps = 2
        self._lock = threading.Lock()

    def hang_up(self, *, reset: bool) -> None:
        self.hung_up = True
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):  # hung up already
                if reset:
                    # With this option close() sends RST; SHUT_RD sends no FIN before it.
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)

    def pump_up(self) -> None:
        self._pump(self.client, self.server, self.proxy.up_bytes_max)

    def pump_down(self) -> None:
        self._pump(self.server, self.client, self.proxy.down_bytes_max)

    def _pump(self, source: socket.socket, sink: socket.socket, bytes_left: int | None) -> None:
        with contextlib.suppress(OSError):  # hung up on purpose, or by either side
            while chunk := source.recv(self.proxy.chunk_bytes):
                chunk = self.proxy.edit(source is self.client, chunk)
                self._wait_for_the_link()
                if self.hung_up:
                    break
                sink.sendall(chunk if bytes_left is None else chunk[:bytes_left])
                if bytes_left is not None:
                    bytes_left -= len(chunk)
                    if bytes_left <= 0:
                        self.hang_up(reset=True)
            self._wait_for_the_link()
            if not self.hung_up:
                sink.shutdown(socket.SHUT_WR)
        self._finish()

    def _wait_for_the_link(self) -> None:
        if self.proxy.delay_s:
            time.sleep(self.proxy.delay_s)
        while self.proxy.silent and not self.hung_up:
            time.sleep(0.005)

    def _finish(self) -> None:
        with self._lock:
            self._pumps -= 1
            last = self._pumps == 0
        if last:
            self.client.close()
            self.server.close()
