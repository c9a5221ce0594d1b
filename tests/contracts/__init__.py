"""One suite of behaviour for every stage and for miniray, each for what it claims."""

import dataclasses
import functools
import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stages import snapshots
from stages.capabilities import CAPABILITIES

PACKAGES = [*(f"stages.{name}" for name in snapshots.NAMES), "miniray"]
# What these are about goes over TCP, and has to be the same where that is encrypted.
OVER_TCP = {"tcp", "timeouts", "forking", "post-mortem", "handshake", "cluster"}
CLAIMED_SINCE = {one.key: one.since for one in CAPABILITIES}


class Implementation:
    """A stage, or miniray: `one.worker` is its module of that name."""

    def __init__(self, package: str) -> None:
        self.package = package

    def __repr__(self) -> str:
        return self.package.removeprefix("stages.")

    def module_with(self, name: str) -> ModuleType:
        """Return the module that defines a function: miniray has more modules than a stage."""
        candidates = ("connection", "remote_worker", "waiting", "channel")
        for module in candidates if self.package == "miniray" else candidates[1::2]:
            if hasattr(getattr(self, module), name):
                return getattr(self, module)
        raise AttributeError(f"{self} has no {name}")

    @property
    def wait(self) -> Any:
        return self.module_with("wait").wait

    def __getattr__(self, module: str) -> ModuleType:
        return importlib.import_module(f"{self.package}.{module}")


class Encrypted(Implementation):
    """miniray again, where all that goes over TCP is encrypted."""

    def __init__(self) -> None:
        super().__init__("miniray")

    def __repr__(self) -> str:
        return "miniray-encrypted"

    def __getattr__(self, module: str) -> Any:
        real = super().__getattr__(module)
        match module:
            case "remote_worker":
                changed = {"RemoteWorker": functools.partial(real.RemoteWorker, encrypt=True)}
            case "worker_server":
                changed = {"WorkerServer": functools.partial(real.WorkerServer, encrypt=True)}
            case "cluster":
                fields = [("encrypt", bool, True)]
                node = dataclasses.make_dataclass(
                    "NodeConfig", fields, bases=(real.NodeConfig,), frozen=True
                )
                changed = {"NodeConfig": node}
            case _:
                return real
        return SimpleNamespace(**{**vars(real), **changed})


def contract(capability: str) -> Any:
    """Run a test for every implementation that claims the capability, as `its`."""
    packages = PACKAGES[CLAIMED_SINCE[capability] - 1 :]
    implementations = [Implementation(package) for package in packages]
    if capability in OVER_TCP:
        implementations.append(Encrypted())

    def decorate(test: Any) -> Any:
        test = pytest.mark.parametrize("its", implementations, ids=repr)(test)
        return pytest.mark.capability(capability)(test)

    return decorate
