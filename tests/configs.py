"""Classes that tests send by name, and work functions that know them."""

import dataclasses
import enum
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from miniray import Channel

AnyValue = TypeVar("AnyValue")


class Precision(enum.Enum):
    FULL = "fp32"
    HALF = "bf16"
    MIXED = FULL  # another name for it


class Priority(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Split(enum.StrEnum):
    TRAIN = "train"
    TEST = "test"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Shape(NamedTuple):
    rows: int
    columns: int = 3


SHAPE = Shape(2)


@dataclasses.dataclass
class Optimizer:
    name: str
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    root: Path
    split: Split = Split.TRAIN
    shape: Shape = SHAPE


@dataclasses.dataclass
class Config:
    data: Data
    optimizer: Optimizer
    precision: Precision = Precision.FULL
    schedule: dict[int, float] = dataclasses.field(default_factory=dict)
    tags: set[str] = dataclasses.field(default_factory=set)

    class Nested(enum.Enum):
        ONE = 1


@dataclasses.dataclass
class Validated:
    """Would say no to what it is built of, and count: a receiver must run none of this."""

    scale: dataclasses.InitVar[int]
    value: int
    scaled: int = dataclasses.field(init=False)

    def __post_init__(self, scale: int) -> None:
        RAN.append("__post_init__")
        self.scaled = self.value * scale

    def __setattr__(self, name: str, value: Any) -> None:
        RAN.append("__setattr__")
        super().__setattr__(name, value)

    def __new__(cls, *_: Any) -> "Validated":
        RAN.append("__new__")
        return super().__new__(cls)

    def __eq__(self, other: object) -> bool:
        RAN.append("__eq__")
        return isinstance(other, Validated) and vars(self) == vars(other)

    def __hash__(self) -> int:
        RAN.append("__hash__")
        return 1


RAN: list[str] = []  # what ran of the classes here that should not have


@dataclasses.dataclass
class Base:
    first: int


@dataclasses.dataclass(kw_only=True)
class Derived(Base, Generic[AnyValue]):
    second: AnyValue

    @functools.cached_property
    def both(self) -> tuple[int, AnyValue]:
        return self.first, self.second


class Undecorated(Base):
    pass


@dataclasses.dataclass
class WithDel:
    first: int

    def __del__(self) -> None:
        RAN.append("__del__")


@dataclasses.dataclass
class OverDict(dict[str, int]):
    first: int


@dataclasses.dataclass
class WithProperty:
    first: int


def _set_first(self: Any, value: int) -> None:
    RAN.append("property")


WithProperty.first = property(lambda _: 1, _set_first)  # type: ignore[assignment]


class LoudShape(Shape):
    """A NamedTuple with code of its own, and room for attributes."""

    def __new__(cls, *args: Any) -> "LoudShape":
        RAN.append("LoudShape")
        return super().__new__(cls, *args)

    def __hash__(self) -> int:
        RAN.append("LoudShape.__hash__")
        return 1

    def __eq__(self, other: object) -> bool:
        RAN.append("LoudShape.__eq__")
        return tuple(self) == other


class LoudEnum(enum.Enum):
    ONE = 1

    def __hash__(self) -> int:
        RAN.append("LoudEnum.__hash__")
        return 1

    @classmethod
    def _missing_(cls, value: object) -> None:
        RAN.append("_missing_")


def example() -> Config:
    """Return a config with everything in it that people write into one."""
    return Config(
        data=Data(Path("data/train"), Split.TEST, Shape(4, 3)),
        optimizer=Optimizer("sgd", lr=0.5),
        precision=Precision.HALF,
        schedule={0: 0.5, 100: 0.05},
        tags={"first", "try"},
    )


def train(channel: Channel) -> None:
    """Take a Config, and send the state_dict of a module and of its optimizer back."""
    import torch

    for config in channel:
        assert type(config) is Config
        model = torch.nn.Sequential(
            torch.nn.Linear(config.data.shape.rows, config.data.shape.columns),
            torch.nn.BatchNorm1d(config.data.shape.columns),
        )
        optimizer = torch.optim.SGD(model.parameters(), config.optimizer.lr, momentum=0.9)
        model(torch.ones(2, config.data.shape.rows)).sum().backward()
        optimizer.step()
        channel.send((model.state_dict(), optimizer.state_dict()))


def echo(channel: Channel) -> None:
    """Send back what comes, or why it cannot be received."""
    for message in messages_or_errors(channel):
        channel.send(message)


def messages_or_errors(channel: Channel) -> Iterator[Any]:
    while True:
        try:
            yield channel.recv()
        except TypeError as error:
            yield str(error)
        except EOFError:
            return
