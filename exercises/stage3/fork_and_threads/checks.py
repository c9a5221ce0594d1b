"""What a cache has to do about forks."""

import os
import threading
import time
from types import ModuleType
from typing import Any

from exercises.checking import expect, note


def _in_child(cache: Any) -> str:
    """Put three bytes in a forked child; return what the child sees before and after."""
    read, write = os.pipe()
    note("a forked child was putting a value into its copy")
    pid = os.fork()
    if pid == 0:
        before = f"{cache.nbytes} bytes, of {sum(map(len, cache.values.values()))} there"
        cache.put("of the child", b"abc")
        os.write(write, f"{before}; then {cache.nbytes}".encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 200).decode()
    os.close(read)
    os.waitpid(pid, 0)
    return said


def check_quiet(answer: ModuleType) -> None:
    """put 5 bytes, fork, and put 3 more in the child and 2 more in the parent"""
    cache = answer.Cache()
    cache.put("warm", b"12345")
    said = _in_child(cache)
    note("the child was done, and the parent was putting a value")
    expected = "5 bytes, of 5 there; then 8"
    expect(said == expected, expected=f"in the child: {expected}", happened=f"there: {said}")
    cache.put("of the parent", b"xy")
    expect(cache.nbytes == 7, expected="7 bytes in the parent", happened=f"{cache.nbytes} bytes")


def check_while_a_thread_puts(answer: ModuleType) -> None:
    """fork while a thread is in the middle of putting 100 bytes, and put 3 more in the child"""
    cache = answer.Cache()
    begun = threading.Event()

    def put_slowly() -> None:
        with cache.lock:
            cache.nbytes += 100
            begun.set()
            time.sleep(0.3)
            cache.values["slow"] = bytes(100)

    thread = threading.Thread(target=put_slowly)
    thread.start()
    begun.wait()
    said = _in_child(cache)
    thread.join()
    expected = "100 bytes, of 100 there; then 103"
    expect(said == expected, expected=f"in the child: {expected}", happened=f"there: {said}")
