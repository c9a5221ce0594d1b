"""Run ssh for the coordinator: pass on what it sends, and show the node that it lives.

A process of its own, out of the terminal's reach: Ctrl-Z stops the coordinator and not its
heartbeat. Its stdin ends when the coordinator does, however that ends, and then ssh's does, and so
does all that runs on the node.

python -c SOURCE SOCKET COMMAND...: make a folder for the tunnel's socket, if there is one, and
remove both at the end. It beats from BEAT_SIGNAL on, when nothing is under way.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys

BEAT_SIGNAL = signal.SIGUSR1
BEAT_S = 5.0
ENDING_S = 5.0  # the node gets most of it to end in order


def main(socket: str, command: list[str]) -> int:
    """Run the command with the heartbeat on its stdin; return its exit status."""
    told_to_beat: list[int] = []
    signal.signal(BEAT_SIGNAL, lambda number, frame: told_to_beat.append(number))
    try:
        if socket:
            os.mkdir(os.path.dirname(socket), 0o700)
        client = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)
    except OSError as error:
        remove(socket)
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        return 127
    assert client.stdin is not None
    with contextlib.suppress(OSError), client.stdin as stdin:  # it may end at any time
        _pass_on(stdin.fileno(), told_to_beat)
    try:
        status = client.wait(ENDING_S)
    except subprocess.TimeoutExpired:  # some launchers do not end with what they have launched
        status = -signal.SIGKILL
    remove(socket)
    if status < 0:  # end alike, and take along whatever it has started
        os.killpg(0, -status)
    return status


def remove(socket: str) -> None:
    """Remove a tunnel's socket, if there is one, and its folder."""
    with contextlib.suppress(OSError):  # ssh has not made it
        os.unlink(socket)
    with contextlib.suppress(OSError):  # it is removed already
        os.rmdir(os.path.dirname(socket))


def _pass_on(sink: int, told_to_beat: list[int]) -> None:
    poller = select.poll()
    poller.register(0, select.POLLIN)
    poller.register(sink, 0)  # to hear of its end
    while True:
        ready = dict(poller.poll(BEAT_S * 1000))
        if sink in ready:
            return
        data = b""
        if ready and not (data := os.read(0, 1 << 16)):
            return
        if not ready and told_to_beat:
            data = b"\n"
        while data:
            data = data[os.write(sink, data) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
