"""Lab: something between client and worker stops forwarding, and closes nothing."""

import contextlib
import select
import socket
import struct
import threading
import time

from exercises.labs.lab import Lab, Record, ms
from stages.stage3_worker_server import auth
from stages.stage3_worker_server.channel import Channel
from stages.stage3_worker_server.remote_worker import RemoteWorker
from stages.stage3_worker_server.worker import Worker
from stages.stage3_worker_server.worker_server import WorkerServer

KEY = auth.make_key()
DEADLINE_S = 0.5
QUIET_S = 3.0
# Of the last two the kernel heeds only the timeout, if it is set, as this stage does.
PROBING = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 2000}
ESTABLISHED = 1
T = 5.0


class Proxy:
    """Forward one connection; while `cut` is set, forward nothing and close nothing."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target, self._closing = target, False
        self.cut = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._forward)
        self._thread.start()

    def _forward(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # closed before anybody came
            return
        with client, socket.create_connection(self._target, T) as server:
            while not self._closing:
                sources = [] if self.cut.is_set() else [client, server]
                for source in select.select(sources, [], [], 0.02)[0]:
                    if not (data := source.recv(1 << 16)):
                        return
                    (server if source is client else client).sendall(data)

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who still waits in accept
        self._thread.join()
        self._listener.close()


def serve(control: Channel) -> None:
    """Run a server whose workers send back whatever comes."""

    def echo(channel: Channel) -> None:
        for message in channel:
            channel.send(message)

    server = WorkerServer(echo, key=KEY)
    control.send([server.host, server.port])
    server.serve_forever()


def look(sock: socket.socket) -> tuple[int, float]:
    """Return a TCP connection's state, and the seconds since the other kernel confirmed anything.

    Both are in the kernel's struct tcp_info, at bytes 0 and 56.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
    return info[0], struct.unpack_from("=I", info, 56)[0] / 1000


def run(record: Record) -> None:
    """Cut the link, wait with a deadline, wait for the kernel, and mend the link."""
    with contextlib.ExitStack() as stack:
        process = Worker(serve)
        stack.callback(process.close, 0.1)
        host, port = process.recv(T)
        proxy = stack.enter_context(contextlib.closing(Proxy((host, port))))
        worker = stack.enter_context(RemoteWorker(*proxy.address, key=KEY))
        for option, value in PROBING.items():
            worker._sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        worker.send("before")
        record.say(f"worker {worker.pid} answers through the proxy: {worker.recv(T)!r}")
        proxy.cut.set()
        time.sleep(0.1)  # the proxy may be in the midst of its last round
        cut = time.monotonic()
        worker.send("while it was cut")
        record.say("the link is cut: the proxy forwards nothing and closes nothing; send returns")
        late = 0.0
        try:
            worker.recv(DEADLINE_S)
        except TimeoutError as error:
            late = time.monotonic() - cut
            record.say(f"recv raises TimeoutError: {error}")
        ready = select.select([worker], [], [], QUIET_S)[0]
        state, confirmed_s = look(worker._sock)
        quiet_s = time.monotonic() - cut
        record.say(f"{ms(quiet_s)} after the cut the kernel has reported {ready or 'nothing'}")
        record.say(f"its last probe was answered {ms(confirmed_s)} ago, by the proxy's kernel")
        proxy.cut.clear()
        answer = worker.recv(T)
        record.say(f"the link is mended: recv returns {answer!r}")

    claim = DEADLINE_S <= late < DEADLINE_S + 1
    found = f"recv's deadline, {ms(late)} after the cut"
    record.left("who noticed", found, claim=claim, expected=f"recv after {DEADLINE_S} s")
    name = "ESTABLISHED" if state == ESTABLISHED else f"state {state}"
    found = f"{name}, after {ms(quiet_s)}; the last answer came {ms(confirmed_s)} ago"
    claim = not ready and state == ESTABLISHED and confirmed_s < QUIET_S / 2
    record.left("the kernel's keepalive", found, claim=claim, expected="ESTABLISHED, and answers")
    claim = answer == "while it was cut"
    record.left("the late answer", repr(answer), claim=claim, expected="the whole of it")


LAB = Lab(
    title="a link that is cut, and closes nothing",
    stage=3,
    question=f"""Client and worker talk through a proxy, as through a tunnel or a load balancer. It
    stops forwarding, closes nothing, and stays up. The kernel probes the connection each second,
    and gives up after two seconds without an answer; recv has a deadline of {DEADLINE_S} s. Who
    notices within three seconds?""",
    answers=(
        "send: it fails at once, because nobody takes the bytes",
        "recv's deadline only; keepalive finds all in order",
        "recv's deadline, and some two seconds later keepalive",
        "nobody",
    ),
    right=1,
    run=run,
    why="""Keepalive asks whether the kernel at the other end of this TCP connection is alive, and
    here that is the proxy's, which answers, and takes what send gives it. Each side believes in
    such a connection, and nothing passes. Only somebody who knows when an answer is due can tell,
    and that is recv with a deadline. Where a machine vanishes with its kernel, keepalive does
    notice, with this stage's settings within 15 seconds. A recv that was late leaves the channel
    usable, so the answer arrived once the link was mended.""",
)
