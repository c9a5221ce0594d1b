"""What runs below one of Ray's actors: the host of a rank, which ends when the actor does."""

import os
import shutil
import signal
import sys
from typing import Any

from miniray import cells, process
from miniray.extras.rank_host import Lost, Place, RankHost, own_address

LEASH = 0  # stdin, which the actor holds


def sweep(folder: str, host: int) -> int:
    """Remove the code once the host has gone, which Ray may kill before it can do so itself."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if os.getppid() == host:
        signal.sigwait({signal.SIGTERM})  # which comes when the host ends
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def keep(settings: dict[str, Any]) -> str:
    """Keep the rank that the settings describe until it ends; return how that went."""
    report = os.dup(1)
    os.dup2(2, 1)  # what the rank prints goes to Ray's logs
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder, host_pid = settings["folder"], os.getpid()
    process.fork(lambda: sweep(folder, host_pid), death_signal=signal.SIGTERM)
    try:
        os.environ.update(settings["env"])
        if settings["workdir"]:
            os.chdir(os.path.expanduser(settings["workdir"]))
        sys.path.insert(1, os.getcwd())  # after the code that was sent
        paths = [settings["folder"], os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        cells.define(settings["cells"])
        place, (address, port) = Place(**settings["place"]), settings["where"]
        host = RankHost(
            place,
            settings["work_fn"],
            settings["key"].encode(),
            lambda: (address, port),
            meet_at=[own_address(address, place)],
            timeout=settings["timeout"],
            leash=LEASH,
            also=settings["also"],
        )
        host.run()
        host.close()
        code = host.rank.exit_code
        return "ended" if code is None else process.describe(code)
    except Lost as lost:
        return str(lost)
    except Exception as error:  # of the folder that is not there, or of what a cell does
        return f"{type(error).__name__}: {error}"
    finally:
        os.dup2(report, 1)
