"""Where a rank is that another launcher has started, and where it finds rank 0.

torchrun, srun and a training operator each say it in variables of their own.
"""

import dataclasses
import socket
from collections.abc import Mapping

from miniray.cli.run_slurm import expand_nodelist, expand_tasks
from miniray.extras.rank_host import Place

# Below the ports that systems give out by themselves, and above those that have a name.
SLURM_PORTS = range(15_000, 30_000)
HELP = (
    "torchrun and training operators set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and srun "
    "SLURM_PROCID and SLURM_NTASKS"
)


@dataclasses.dataclass(frozen=True)
class Meeting:
    """The address and the port at which rank 0 listens for all others.

    `is_store` if torchrun's agent listens there instead, with a store: rank 0 then writes into
    that where else it is.
    """

    address: str
    port: int
    is_store: bool = False


def find_place(environ: Mapping[str, str]) -> tuple[Place, Meeting]:
    """Return what a launcher's variables say.

    Raises ValueError, with the variable that is missing or makes no sense.
    """
    if "RANK" in environ:
        place, meeting = _of_torchrun(environ)
    elif "SLURM_PROCID" in environ:
        place, meeting = _of_slurm(environ)
    else:
        raise ValueError(f"no launcher has started this process as a rank: {HELP}")
    check_port(meeting.port, "MASTER_PORT")
    if place.rank >= place.world_size:
        raise ValueError(f"there is no rank {place.rank} in a world of {place.world_size}")
    return place, meeting


def check_port(port: int, name: str) -> None:
    """Raise ValueError for a number at which nobody can be met."""
    if not 1 <= port <= 65_535:
        raise ValueError(f"{name}={port} is no port: those are 1 to 65535")


def _of_torchrun(environ: Mapping[str, str]) -> tuple[Place, Meeting]:
    """Read what torchrun sets; an operator that starts one rank a pod leaves some of it out."""
    rank, local_world_size = _number(environ, "RANK"), _number(environ, "LOCAL_WORLD_SIZE", 1)
    place = Place(
        rank,
        _number(environ, "WORLD_SIZE"),
        _number(environ, "LOCAL_RANK", 0 if local_world_size == 1 else None),
        local_world_size,
        _number(environ, "GROUP_RANK", rank // local_world_size),
        socket.gethostname(),
    )
    if not environ.get("MASTER_ADDR"):
        raise ValueError(f"MASTER_ADDR is not set: {HELP}")
    is_store = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return place, Meeting(environ["MASTER_ADDR"], _number(environ, "MASTER_PORT"), is_store)


def _of_slurm(environ: Mapping[str, str]) -> tuple[Place, Meeting]:
    """Read what srun sets for a task; MASTER_ADDR and MASTER_PORT win where the user sets them."""
    if "SLURM_STEP_ID" not in environ and _number(environ, "SLURM_NTASKS") > 1:
        raise ValueError("this is the batch script itself: put srun before the command in it")
    node_rank = _number(environ, "SLURM_NODEID", 0)
    place = Place(
        _number(environ, "SLURM_PROCID"),
        _number(environ, "SLURM_NTASKS"),
        _number(environ, "SLURM_LOCALID"),
        _tasks_of_node(environ, node_rank),
        node_rank,
        environ.get("SLURMD_NODENAME") or socket.gethostname(),
    )
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    address = environ.get("MASTER_ADDR") or (expand_nodelist(nodes)[0] if nodes else None)
    if address is None:
        raise ValueError("srun has set no SLURM_STEP_NODELIST: set MASTER_ADDR to rank 0's machine")
    return place, Meeting(address, _number(environ, "MASTER_PORT", port_of_step(environ)))


def _tasks_of_node(environ: Mapping[str, str], node_rank: int) -> int:
    for variable in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        if text := environ.get(variable):
            counts = expand_tasks(text)
            if node_rank >= len(counts):
                raise ValueError(f"{variable}={text} says nothing of node {node_rank}")
            return counts[node_rank]
    return _number(environ, "SLURM_NTASKS")


def port_of_step(environ: Mapping[str, str]) -> int:
    """Return the port that all tasks of a job's step take, each by itself."""
    job, step = _number(environ, "SLURM_JOB_ID", 0), _number(environ, "SLURM_STEP_ID", 0)
    return SLURM_PORTS[(31 * job + step) % len(SLURM_PORTS)]


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if not text:
        if default is None:
            raise ValueError(f"{name} is not set: {HELP}")
        return default
    if not text.isdecimal():
        raise ValueError(f"{name}={text!r} is no number from 0 up")
    return int(text)
