"""torch's store, where ranks meet: on a socket from before the fork, with new keys for each group.

By itself torch has rank 0 listen at MASTER_PORT when its group begins, on every interface, if
nobody was faster; and a second group of the same ranks may meet in what is left of the first.
"""

import contextlib
import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Self

from miniray import inherited

RENDEZVOUS = "torch.distributed.rendezvous"  # where torch makes stores of addresses


class StoreHost:
    """Take a port for the rank that is to be forked in its `with`, and serve torch's store there.

    It is one of the first address that this machine has: a name may lead elsewhere, and here to
    127.0.0.1, which is taken only if nothing else is left. Without any there is none: the rank is
    not rank 0. Nobody listens before the rank has imported torch.distributed.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._socket = _bind_at_first(hosts) if hosts else None
        # Where that is, as an address and a port.
        self.address: list[Any] = []
        if self._socket is not None:
            self.address = [*self._socket.getsockname()[:2]]
        self._store: Any = None  # it stays, and so do the keys in it
        self._token = secrets.token_hex(8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave the socket to the rank."""
        self.abandon()

    def abandon(self) -> None:
        """Close this process's copy of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def take_over(self) -> None:
        """Have torch, which may not have been imported yet, use this in this process, the rank."""
        inherited.own(self)  # a child of the rank serves nobody
        if module := sys.modules.get(RENDEZVOUS):
            self._extend(module)
        else:
            sys.meta_path.insert(0, OnImport(RENDEZVOUS, self._extend))

    def _extend(self, module: ModuleType) -> None:
        """Have the module, where torch makes a store of an address, ask us for it."""
        new_store = module.TCPStore
        if self._socket is not None:
            # Who comes early waits here; torch would try again a second after a refusal.
            self._socket.listen(socket.SOMAXCONN)

        def meet(**options: Any) -> Any:
            if self._socket is not None and self._store is None:
                # What torch makes next in rank 0 finds this by its port, and listens nowhere.
                self._store = new_store(
                    *self.address,
                    is_master=True,
                    multi_tenant=True,
                    master_listen_fd=self._socket.fileno(),
                    # An older libuv store takes no socket.
                    use_libuv=sys.modules["torch"].__version__ >= "2.8",
                )
            store, size = new_store(**options), str(options.get("world_size"))
            # How often this process has been here for a group of that size, and which size was
            # the first: for all ranks of a group it is the same, though rank 0 was here alone.
            visit = store.add(f"miniray/{size} {self._token} {os.getpid()}", 1)
            first = store.compare_set("miniray/first", "", size).decode()
            if (visit, size) == (1, first):
                return store
            prefix = f"miniray/{size} {visit}"
            return sys.modules["torch.distributed"].PrefixStore(prefix, store)

        module.TCPStore = meet  # type: ignore[attr-defined]


def _bind_at_first(hosts: Sequence[str]) -> socket.socket:
    for host in hosts[:-1]:
        with contextlib.suppress(OSError):
            bound = _bind(host)
            if not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
                return bound
            bound.close()
    return _bind(hosts[-1])


def _bind(host: str) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)  # without SO_REUSEADDR: others may not even bind there
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
        return bound
    except (OSError, ValueError) as error:  # also what is no name at all
        problem = f"the ranks cannot meet at {host}: {getattr(error, 'strerror', error)}"
        raise OSError(f"{problem}; give an address of that machine") from None


class OnImport(MetaPathFinder):
    """Call a function with a module as soon as that has been imported."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self._name, self._act = name, act

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as everybody does, and have it loaded with our function at the end."""
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_act(module: ModuleType) -> None:
                load(module)
                self._act(module)

            spec.loader.exec_module = load_and_act  # type: ignore[method-assign]
        return spec
