"""One suite of behaviour for every stage and for miniray, each for what it claims."""

import importlib
from types import ModuleType
from typing import Any

import pytest

from stages import snapshots
from stages.capabilities import CAPABILITIES

PACKAGES = [*(f"stages.{name}" for name in snapshots.NAMES), "miniray"]
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


def contract(capability: str) -> Any:
    """Run a test for every implementation that claims the capability, as `its`."""
    packages = PACKAGES[CLAIMED_SINCE[capability] - 1 :]
    implementations = [Implementation(package) for package in packages]

    def decorate(test: Any) -> Any:
        test = pytest.mark.parametrize("its", implementations, ids=repr)(test)
        return pytest.mark.capability(capability)(test)

    return decorate
