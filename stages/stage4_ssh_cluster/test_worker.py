"""What a worker on this machine promises, in every stage."""

import json
import os
import signal
import sys
import unittest
from typing import Any

from .channel import Channel
from .errors import WorkerDied, WorkerExited, WorkerFailed
from .worker import Worker


def echo(channel: Channel) -> None:
    """Send back whatever comes."""
    for message in channel:
        channel.send(message)


def obey(channel: Channel) -> None:
    """Do what each message says."""
    for order in channel:
        match order:
            case "pid":
                channel.send(os.getpid())
            case "raise":
                raise ValueError("no such batch: 7")
            case "return":
                return
            case "hard exit":
                os._exit(7)
            case {"exit": status}:
                sys.exit(status)
            case "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                channel.send("hanging")
                while True:
                    signal.pause()
            case int(number):
                os.kill(os.getpid(), number)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended and has been reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class TestMessages(unittest.TestCase):
    def test_whatever_json_can_say_comes_back(self) -> None:
        with Worker(echo) as worker:
            messages: list[Any] = [None, True, -1, 0.5, "", "ü€😀", [], {}, {"a": [1, {"b": 2}]}]
            for message in messages:
                worker.send(message)
                assert worker.recv() == message

    def test_messages_arrive_in_order_and_apart(self) -> None:
        with Worker(echo) as worker:
            for number in range(100):
                worker.send({"number": number})
            assert [worker.recv()["number"] for _ in range(100)] == list(range(100))

    def test_a_message_larger_than_any_buffer_arrives_whole(self) -> None:
        with Worker(echo) as worker:
            message = [f"item {index}" for index in range(200_000)]
            worker.send(message)
            assert worker.recv() == message

    def test_a_worker_is_a_process_of_its_own(self) -> None:
        with Worker(obey) as one, Worker(obey) as other:
            for worker in (one, other):
                worker.send("pid")
            pids = [one.recv(), other.recv()]
            assert pids == [one.pid, other.pid]
            assert len({*pids, os.getpid()}) == 3

    def test_what_cannot_be_sent_leaves_the_channel_usable(self) -> None:
        with Worker(echo) as worker:
            with self.assertRaises(TypeError):
                worker.send({"batch": object()})
            worker.send("usable")
            assert worker.recv() == "usable"


class TestEndings(unittest.TestCase):
    def test_a_function_that_returns_is_done_now_and_ever_after(self) -> None:
        with Worker(obey) as worker:
            worker.send("return")
            for _ in range(2):
                with self.assertRaisesRegex(WorkerExited, "is done"):
                    worker.recv()
            with self.assertRaises(WorkerExited):
                worker.send("pid")
            assert worker.wait() == 0

    def test_an_exception_arrives_with_its_traceback(self) -> None:
        with Worker(obey) as worker, Worker(echo) as other:
            worker.send("raise")
            with self.assertRaisesRegex(WorkerFailed, "raised ValueError: no such batch: 7") as it:
                worker.recv()
            assert "in obey" in str(it.exception)
            other.send("unharmed")
            assert other.recv() == "unharmed"

    def test_a_send_that_fails_says_why_the_worker_has_ended(self) -> None:
        with Worker(obey) as worker:
            worker.send("raise")
            worker.wait()
            with self.assertRaisesRegex(WorkerFailed, "no such batch"):
                worker.send("pid")

    def test_a_worker_killed_by_a_signal_died_of_it(self) -> None:
        for number, words in {
            signal.SIGKILL: r"was killed by SIGKILL \(probably out of memory\)",
            signal.SIGTERM: "was killed by SIGTERM",
            signal.SIGRTMIN + 1: f"was killed by signal {signal.SIGRTMIN + 1}",  # it has no name
        }.items():
            with Worker(obey) as worker:
                worker.send(int(number))
                for _ in range(2):
                    with self.assertRaisesRegex(WorkerDied, words):
                        worker.recv()
                assert worker.wait() == -number

    def test_a_hard_exit_tells_its_status(self) -> None:
        with Worker(obey) as worker:
            worker.send("hard exit")
            with self.assertRaisesRegex(WorkerDied, "exited with status 7"):
                worker.recv()

    def test_sys_exit_with_a_status_is_a_failure_and_nobody_takes_it_for_the_end(self) -> None:
        for status, code, words in ((3, 3, "3"), ("fatal: no data", 1, "fatal: no data")):
            with Worker(obey) as worker:
                worker.send({"exit": status})
                with self.assertRaisesRegex(
                    WorkerFailed, f"(raised SystemExit|exited with status).*{words}"
                ):
                    list(worker)
                assert worker.wait() == code

    def test_sys_exit_without_one_is_a_way_to_return(self) -> None:
        for status in (None, 0):
            with Worker(obey) as worker:
                worker.send({"exit": status})
                assert list(worker) == []
                assert worker.wait() == 0

    def test_a_worker_never_returns_into_the_code_that_started_it(self) -> None:
        read, write = os.pipe()
        with os.fdopen(read) as answers, os.fdopen(write, "w") as out:
            with Worker(lambda channel: None) as worker, self.assertRaises(WorkerExited):
                worker.recv()
            json.dump(os.getpid(), out)  # a child that came back would write here, too
            out.close()
            assert answers.read() == str(os.getpid())


class TestClose(unittest.TestCase):
    def test_close_leaves_no_process_and_no_zombie(self) -> None:
        for work_fn in (echo, obey):
            worker = Worker(work_fn)
            worker.close()
            assert is_gone(worker.pid)
            worker.close()

    def test_close_ends_a_worker_that_ignores_it_and_sigterm(self) -> None:
        worker = Worker(obey)
        worker.send("hang")
        assert worker.recv() == "hanging"
        worker.close(timeout=0.2)
        assert worker.wait() == -signal.SIGKILL
        assert is_gone(worker.pid)

    def test_a_hang_up_is_seen_however_many_siblings_there_are(self) -> None:
        first, second = Worker(echo), Worker(echo)
        first.close(timeout=120.0)  # it would last, if the second held the first one's socket
        second.send("alive")
        assert second.recv() == "alive"
        second.close()

    def test_after_close_every_call_says_so(self) -> None:
        worker = Worker(echo)
        worker.close()
        for call in (worker.recv, lambda: worker.send(1)):
            with self.assertRaisesRegex(ConnectionError, "this side has closed"):
                call()


if __name__ == "__main__":
    unittest.main()
