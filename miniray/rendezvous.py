"""How ranks meet: the place of each, and the variables that torch and its backends read."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class NCCLConfig:
    """One rank's place in a process group; `config.__dict__` can be sent as a message.

    `backend` is "nccl", "gloo" or None: then the rank takes gloo if its GPUs are fake, else nccl.
    """

    master_addr: str
    master_port: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    backend: str | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables that torchrun would set for this rank."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_RANK": str(self.node_rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def from_environment() -> NCCLConfig:
    """Return the place that torchrun's variables describe; raise RuntimeError if they do not."""
    try:
        return NCCLConfig(
            master_addr=os.environ["MASTER_ADDR"],
            master_port=int(os.environ["MASTER_PORT"]),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            node_rank=int(os.environ["GROUP_RANK"]),
        )
    except KeyError as missing:
        raise RuntimeError(
            f"this process has no place in a process group: {missing} is not in its environment; "
            "give process_group a config, or call it in a function that Cluster.run runs"
        ) from None


@contextlib.contextmanager
def environment(config: NCCLConfig) -> Iterator[None]:
    """Set a rank's variables, and the interface towards rank 0 where the user has named none.

    In the end each gets back what it was, unless somebody has changed it meanwhile.
    """
    ours = config.environment()
    if interface := _interface_towards(config.master_addr):
        # "=": else NCCL would take every interface whose name begins so.
        names = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}
        ours |= {name: value for name, value in names.items() if name not in os.environ}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if os.environ.get(name) == ours[name]:
                del os.environ[name]
                os.environ.update({} if value is None else {name: value})


def _interface_towards(host: str) -> str | None:
    """Return the network interface whose address this machine uses to reach a host.

    Gloo would otherwise take the one that this machine's own name resolves to.
    """
    import fcntl
    import struct

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: it only looks the route up
            ours = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                query = struct.pack("256s", name.encode()[:15])
                with contextlib.suppress(OSError):  # an interface without an IPv4 address
                    # 0x8915 is SIOCGIFADDR; the address begins at byte 20 of the answer.
                    if fcntl.ioctl(probe.fileno(), 0x8915, query)[20:24] == ours:
                        return name
    except OSError:  # no IPv4 route there: gloo's own choice may still do
        return None
    return None
