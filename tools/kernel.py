"""A real Jupyter kernel, to run cells in, to interrupt, to restart and to shut down.

Its client is a process of its own: the sockets and threads of that are nobody else's.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).parents[1]
READY_S = 60.0


@dataclass(frozen=True)
class Ran:
    """What a cell printed, its result as text, and its error, if it raised one."""

    stdout: str
    stderr: str
    result: str
    error: str


class Kernel:
    """A kernel that runs in a folder, and for itself."""

    def __init__(self, folder: Path) -> None:
        places = {name: str(folder / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
        # ipykernel would not show what descriptors bring: it takes pytest for its host.
        env = {name: text for name, text in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        path = os.pathsep.join(filter(None, [str(REPOSITORY), env.get("PYTHONPATH")]))
        self._client = subprocess.Popen(
            [sys.executable, "-m", "tools.kernel"],
            cwd=folder,
            env={**env, **places, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask(None)  # it has started the kernel, which thus is not what a test leaves

    def run(self, cell: str, *, interrupt_at: str = "", timeout: float = 60.0) -> Ran:
        """Run a cell; interrupt it once it, or a rank, prints `interrupt_at`."""
        ran = self._ask({"cell": cell, "interrupt_at": interrupt_at, "timeout": timeout})
        return Ran(**ran)

    def restart(self) -> None:
        """End the kernel as a user does, and start another."""
        self._ask({"restart": True})

    def shut_down(self) -> None:
        """End the kernel as a user does."""
        self._ask({"restart": False})

    def _ask(self, request: dict[str, Any] | None) -> Any:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        print(json.dumps(request), file=self._client.stdin, flush=True)
        answer = self._client.stdout.readline()
        assert answer, "the kernel's client has ended"
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.communicate()
        assert self._client.returncode == 0


def _serve() -> None:
    """Be the client: a request and an answer are a line each, and at the end so is the kernel's."""
    from jupyter_client.manager import KernelManager

    folder = os.environ["JUPYTER_RUNTIME_DIR"]
    os.makedirs(folder, mode=0o700, exist_ok=True)
    manager = KernelManager(transport="ipc", ip=os.path.join(folder, "kernel"))
    # Else what its descriptors bring would come in between the answers, too.
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = _connect(manager)
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        if request is None:
            pass
        elif "cell" in request:
            answer = _run(manager, client, **request)
        elif request["restart"]:
            client.stop_channels()
            manager.restart_kernel()
            client = _connect(manager)
        else:
            manager.shutdown_kernel()
        print(json.dumps(answer), flush=True)
    client.stop_channels()
    if manager.has_kernel:
        manager.shutdown_kernel()


def _connect(manager: Any) -> Any:
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=READY_S)
    return client


def _run(manager: Any, client: Any, cell: str, interrupt_at: str, timeout: float) -> dict[str, str]:
    said = dict.fromkeys(("stdout", "stderr", "result", "error"), "")
    interrupted = False

    def on_output(message: Any) -> None:
        nonlocal interrupted
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            said[content["name"]] += content["text"]
        elif kind in ("execute_result", "display_data"):
            said["result"] += content["data"].get("text/plain", "")
        elif kind == "error":
            said["error"] = f"{content['ename']}: {content['evalue']}"
        printed = said["stdout"] + said["stderr"]
        if interrupt_at and interrupt_at in printed and not interrupted:
            interrupted = True
            manager.interrupt_kernel()

    try:
        client.execute_interactive(cell, timeout=timeout, output_hook=on_output, allow_stdin=False)
    except TimeoutError:
        said["error"] = f"TimeoutError: the cell has not ended after {timeout}s"
    return said


if __name__ == "__main__":
    _serve()
