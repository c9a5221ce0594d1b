"""Values of the closed list and of the user's classes: as they were, or refused with a way out."""

import dataclasses
import datetime as datetime_module
import json
import os
import re
import subprocess
import sys
import time
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miniray import Channel, Cluster, NodeConfig, ProtocolError, RemoteWorker, Worker, codec, wire
from miniray import values as sendable_values
from miniray.decoding import Decoder
from tests import configs
from tests.configs import RAN, Access, Base, Derived, Shape, Validated, echo, example
from tests.sendable import BERLIN, EXAMPLES, keys, numpy, same, torch, values
from tests.support.servers import Server
from tools.site import blocks

T = 60.0
CODE = re.compile("`([^`]+)`")
USUAL_NAMES = {
    "numpy": numpy,
    "torch": torch,
    "re": re,
    **{one.__name__: one for one in (OrderedDict, Counter, defaultdict, deque)},
    **{name: getattr(datetime_module, name) for name in datetime_module.__all__},
    **{
        one.__name__: one for one in (Path, PurePosixPath, PureWindowsPath, Decimal, UUID, ZoneInfo)
    },
    "make_dataclass": dataclasses.make_dataclass,
}
MANUAL = Path(__file__).parents[1] / "docs" / "MINIRAY.md"
GOLDEN = Path(__file__).with_name("golden") / "values.txt"


needs_torch = pytest.mark.skipif(torch is None, reason="the core's tests do without torch")


def header_of(message: Any) -> str:
    encoded = wire.encode(wire.MESSAGE, message)
    assert not encoded.parts
    return encoded.head[9:].decode()


def decode_text(text: str, kind: int = wire.MESSAGE, *, auth_only: bool = False) -> Any:
    decoder = Decoder(auth_only=auth_only)
    decoder.feed(wire.PRELUDE.pack(wire.MAGIC, kind, len(text)) + text.encode())
    frame = decoder.next_frame()
    assert frame is not None
    return frame.body


def there_and_back(message: Any) -> Any:
    encoded = wire.encode(wire.MESSAGE, message)
    decoder = Decoder()
    decoder.feed(encoded.head + b"".join(map(bytes, encoded.parts)))
    frame = decoder.next_frame()
    assert frame is not None
    return frame.body


def decode(tree: Any) -> Any:
    return codec.decode(json.loads(json.dumps(tree)), [], {})


class TestExamples:
    @pytest.mark.parametrize("name", EXAMPLES)
    def test_arrive_as_they_were(self, name: str) -> None:
        arrived = there_and_back({"a": [EXAMPLES[name]]})["a"][0]
        assert same(arrived, EXAMPLES[name]), repr(arrived)

    def test_travel_as_they_always_have(self) -> None:
        """UPDATE_GOLDEN=1 writes how they do now; who does that breaks the wire."""
        lines = {name: header_of(value) for name, value in EXAMPLES.items()}
        if os.environ.get("UPDATE_GOLDEN"):
            GOLDEN.write_text("".join(f"{name}: {lines[name]}\n" for name in lines))
        golden = dict(line.split(": ", 1) for line in GOLDEN.read_text().splitlines())
        if torch is None:
            golden = {name: golden[name] for name in lines}
        assert lines == golden
        for name, text in golden.items():
            assert same(decode_text(text), EXAMPLES[name])

    def test_are_of_every_mark(self) -> None:
        text = GOLDEN.read_text()
        for mark in sendable_values.MARKS:
            assert f'{{"$":"{mark}"' in text


class TestOrdinaryThings:
    """What people have in their hands when they send."""

    @needs_torch
    def test_a_state_dict_loads_where_it_arrives(self) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        sent = model.state_dict()
        arrived = there_and_back(sent)
        assert type(arrived) is OrderedDict
        assert same(arrived._metadata, sent._metadata)
        other = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        other.load_state_dict(arrived)
        assert same(other.state_dict(), sent)

    @needs_torch
    def test_an_optimizers_state_has_int_keys(self) -> None:
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.AdamW([parameter])
        parameter.sum().backward()
        optimizer.step()
        arrived = there_and_back(optimizer.state_dict())
        assert list(arrived["state"]) == [0]
        torch.optim.AdamW([parameter]).load_state_dict(arrived)

    def test_a_defaultdict_goes_on_to_make_what_is_missing(self) -> None:
        arrived = there_and_back(defaultdict(list, a=[1]))
        arrived["b"].append(2)
        assert arrived == {"a": [1], "b": [2]}

    @needs_torch
    def test_buffers_within_every_container(self) -> None:
        message = {
            "dataclass": configs.Optimizer("sgd", torch.ones(2), numpy.ones(3)),
            "tuple": Shape(torch.zeros(1), b"raw"),
            "ordered": OrderedDict(a=torch.ones(2)),
            7: {b"key": bytearray(b"value")},
            "set": {b"one", (b"two", 2)},
        }
        assert same(there_and_back(message), message)

    def test_bool_and_int_and_float_keys_keep_their_types(self) -> None:
        numbers = [numpy.int64(1)] if numpy else []
        for key in (1, True, 1.0, Decimal(1), configs.Priority.LOW, *numbers):
            (arrived,) = there_and_back({key: "x"})
            assert type(arrived) is type(key)
            (arrived,) = there_and_back({key})
            assert type(arrived) is type(key)

    def test_a_time_that_comes_twice_keeps_which_it_was(self) -> None:
        for fold in (0, 1):
            moment = datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=BERLIN)
            arrived = there_and_back(moment)
            assert arrived.utcoffset() == timedelta(hours=2 - fold)
            assert arrived.tzinfo is ZoneInfo("Europe/Berlin")


@given(values)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=300)
def test_any_value_arrives_as_it_was(value: Any) -> None:
    assert same(there_and_back(value), value)


@given(st.dictionaries(keys, st.integers()), st.frozensets(keys))
def test_any_key_finds_its_value_again(pairs: dict[Any, int], elements: frozenset[Any]) -> None:
    arrived, arrived_set = there_and_back((pairs, elements))
    assert list(map(type, arrived)) == list(map(type, pairs))
    assert all(arrived[key] == number for key, number in pairs.items())
    assert all(element in arrived_set for element in elements)


@contextmanager
def worker_of(where: str, work_fn: str) -> Iterator[Channel]:
    """Yield a worker that runs a function of `tests.configs`, here, behind TCP or in a cluster."""
    if where == "local":
        with Worker(getattr(configs, work_fn)) as worker:
            yield worker
    elif where == "tcp":
        server = Server(f"tests.configs.{work_fn}")
        try:
            with RemoteWorker("127.0.0.1", server.port) as remote:
                yield remote
        finally:
            server.stop()
    else:
        with Cluster([NodeConfig.local(1)]) as cluster:
            yield cluster.start(f"tests.configs.{work_fn}")[0]


@pytest.mark.parametrize(
    "where", ["local", "tcp", pytest.param("cluster", marks=pytest.mark.thorough)]
)
class TestOverChannels:
    def test_any_value_goes_there_and_comes_back(self, where: str) -> None:
        with worker_of(where, "echo") as worker:
            everything = list(EXAMPLES.items())
            worker.send(everything)
            assert same(worker.recv(T), everything)

            @given(values)
            @settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
            def check(value: Any) -> None:
                worker.send(value)
                assert same(worker.recv(T), value)

            check()

    @needs_torch
    def test_a_config_goes_and_a_state_dict_comes_back_without_a_line_of_conversion(
        self, where: str
    ) -> None:
        with worker_of(where, "train") as worker:
            worker.send(example())
            model_state, optimizer_state = worker.recv(T)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        model.load_state_dict(model_state)
        optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
        optimizer.load_state_dict(optimizer_state)
        assert model_state["1.num_batches_tracked"].item() == 1
        assert optimizer.param_groups[0]["lr"] == 0.5


class Handmade(str):
    __slots__ = ()


class Local(tzinfo):
    pass


class NotAll(OrderedDict[str, int]):
    pass


class Modelled:
    """As pydantic's classes look from outside."""

    def model_dump(self) -> None: ...


class Elsewhere:
    def __fspath__(self) -> str:
        return "x"


class OtherTime(datetime):
    pass


def local_class() -> Any:
    @dataclasses.dataclass
    class Inner:
        one: int

    return Inner(1)


def deep_tuple() -> Any:
    """Return what can be hashed, and is deeper than Python calls itself."""
    made: Any = ()
    for _ in range(2000):
        made = (made,)
    return made


def lacking() -> Base:
    one = Base(1)
    del one.first
    return one


def with_attribute(value: Any) -> Any:
    value.extra = 1
    return value


def defined_again() -> Any:
    module = types.ModuleType("tests.again")
    exec("import enum\nclass E(enum.Enum):\n    A = 1\nold = E.A", vars(module))
    exec("class E(enum.Enum):\n    A = 1", vars(module))
    sys.modules["tests.again"] = module
    return vars(module)["old"]


REFUSED = {
    "dict key": (
        {"a": [{configs.Data(Path("x")): 1}]},
        r'message\["a"\]\[0\]: dict with a key of tests',
    ),
    "nan as a key": ({float("nan"): 1}, r"a key of float, a nan; send its items: list\(d.items"),
    "nan within a key": ({(1, float("nan")): 1}, r"a key of tuple"),
    "nan in a set": (
        {"s": {float("nan")}},
        r'message\["s"\]: set with a key of float, a nan; call l',
    ),
    "decimal nan as a key": ({Decimal("nan"): 1}, "a key of decimal.Decimal, a nan"),
    "set of objects": ({object()}, r"set with a key of object; call list\(\) first"),
    "nan in a set of sets": ({frozenset({float("nan")})}, r"frozenset with a key of float, a nan"),
    "key that is too deep": ({deep_tuple(): 1}, "a key of tuple"),
    "NamedTuple cut short": (tuple.__new__(Shape, [1]), "2 fields and not as many items; call t"),
    "tuple of a dataclass as a key": ({(1, configs.Data(Path("x"))): 1}, "a key of tuple"),
    "key with a hash of its own": ({configs.LoudEnum.ONE: 1}, "a key of tests.configs.LoudEnum"),
    "loud tuple as a key": ({configs.LoudShape(1, 2): 1}, "a key of tests.configs.LoudShape"),
    "factory": (defaultdict(lambda: 0), r"whose factory is <function.*; call dict\(\)"),
    "ordered with attributes": (
        with_attribute(OrderedDict()),
        r"OrderedDict with attributes \['extra'\]; call dict\(\) first",
    ),
    "subclass of str": ([Handmade("x")], r"message\[0\]: tests.test_values.Handmade; call str\(\)"),
    "subclass of dict": (NotAll(), r"NotAll; call dict\(\) first"),
    "subclass of int": (type("Int", (int,), {})(3), r"Int; call int\(\) first"),
    "memoryview": (memoryview(b""), r"memoryview; call bytes\(\) first"),
    "deque": (deque(), r"deque; call list\(\) first"),
    "keys": ({}.keys(), r"dict_keys; call list\(\) first"),
    "subclass of list": (type("List", (list,), {})(), r"List; call list\(\) first"),
    "worker": (Channel.__new__(Channel), r"Channel; send plain values"),
    "fraction": (Fraction(1, 3), r"Fraction; call .as_integer_ratio\(\) first"),
    "path of another kind": (Elsewhere(), r"Elsewhere; call os.fspath\(\) first"),
    "other time": (OtherTime(2026, 1, 1), r"OtherTime; call .isoformat\(\) first"),
    "config of another library": (Modelled(), r"Modelled; call .model_dump\(\) first"),
    "mapping": (types.MappingProxyType({}), r"mappingproxy; call dict\(\) first"),
    "generator": ((one for one in ()), r"generator; call list\(\) first"),
    "struct_time": (time.gmtime(), r"time.struct_time; call tuple\(\) first"),
    "namespace": (types.SimpleNamespace(a=1), r"types.SimpleNamespace; call vars\(\) first"),
    "function": ({"f": print}, r'message\["f"\]: builtin_function_or_method; send its name'),
    "class": (Base, r"type; send its name"),
    "exception": (ValueError("x"), r"ValueError; send plain values"),
    "foreign zone": (
        datetime(2026, 1, 1, tzinfo=Local()),
        r"tzinfo is tests.test_values.Local; call .astimezone\(datetime.timezone.utc\) first",
    ),
    "flags": (Access.READ | Access.WRITE, r"no single member of .*Access; send its .value"),
    "local class": (local_class(), r"defined within a function; move it out, or send its dataclas"),
    "defined again": (defined_again(), r"not what tests.again:E leads to now; make it again, or"),
    "undecorated": (configs.Undecorated(1), "Undecorated; decorate it with @dataclass as well"),
    "attribute": ({"c": with_attribute(Base(1))}, r"""message\["c"\]: .*Base holds 'extra', wh"""),
    "attribute of a tuple": (
        with_attribute(configs.LoudShape(1, 2)),
        "holds 'extra', which is no f",
    ),
    "field that is missing": (lacking(), "Base lacks a field: .*first"),
    "dataclass with __del__": (
        configs.WithDel(1),
        "has a __del__, which would run on what another",
    ),
    "dataclass over dict": (configs.OverDict(1), "OverDict is a dataclass on top of a built-in cl"),
    "dataclass with a property": (configs.WithProperty(1), "WithProperty.first is a property"),
    "within a dataclass": (
        {"c": configs.Optimizer("x", betas=(0, print))},  # type: ignore[arg-type]
        r'message\["c"\].betas\[1\]: builtin_function',
    ),
    "within a NamedTuple": ([Shape(1, print)], r"message\[0\].columns: builtin"),  # type: ignore[arg-type],
    "within a state_dict": (OrderedDict(a=[print]), r'message\["a"\]\[0\]: builtin'),
    "within a dict of ints": ({3: {"a": print}}, r'message\[3\]\["a"\]: builtin'),
}
if torch is not None:
    REFUSED |= {
        "not a time as a key": ({numpy.datetime64("nat"): 1}, "a key of numpy.datetime64, a nan"),
        "return type": (torch.ones(2, 2).max(0), r"torch.return_types.max; call tuple\(\) first"),
        "module": (torch.nn.Linear(1, 1), r"Linear; call .state_dict\(\) first"),
        "array-like": (numpy.ma.array([1], mask=[1]), r"MaskedArray; call numpy.asarray\(\) first"),
        "record": (numpy.zeros(1, "i2,i2")[0], r"numpy.void; call .item\(\) first"),
        "record dtype": (numpy.dtype("i2,i2"), r"send its .descr"),
        "object dtype": (numpy.dtype("O"), r"send its .descr"),
        "quantized dtype": (torch.qint8, r"torch.qint8; send its name"),
    }


@pytest.mark.parametrize(("value", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_sent_says_what_can(value: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        wire.encode(wire.MESSAGE, value)


class TestInstances:
    @pytest.fixture(autouse=True)
    def nothing_ran(self) -> None:
        RAN.clear()

    def test_are_built_without_running_any_code_of_theirs(self) -> None:
        one, two = Validated(3, 5), configs.LoudShape(1, 2)
        wire.encode(wire.MESSAGE, [one, two])
        RAN.clear()
        arrived, shape = there_and_back([one, two])
        assert RAN == []
        assert vars(arrived) == {"value": 5, "scaled": 15}
        assert (type(shape), tuple.__eq__(shape, two)) == (configs.LoudShape, True)

    def test_are_frozen_again(self) -> None:
        arrived = there_and_back(configs.Data(Path("x")))
        with pytest.raises(dataclasses.FrozenInstanceError):
            arrived.root = Path("y")

    def test_leave_what_they_only_cached_and_find_it_again(self) -> None:
        one = Derived[str](first=1, second="b")
        assert one.both == (1, "b")
        arrived = there_and_back(one)
        assert "both" not in vars(arrived)
        assert arrived.both == (1, "b")

    @pytest.mark.parametrize("name", ["WithDel", "WithProperty", "OverDict"])
    def test_of_a_class_that_would_run_code_are_not_built(self, name: str) -> None:
        tree = {"$": "dataclass", "items": [f"tests.configs:{name}", {"first": 1}]}
        assert type(decode(tree)) is codec.Unreadable
        assert RAN == []

    def test_of_an_enum_are_its_members_and_asking_runs_nothing(self) -> None:
        assert there_and_back(configs.LoudEnum.ONE) is configs.LoudEnum.ONE
        tree = {"$": "enum", "items": ["tests.configs:LoudEnum", "TWO"]}
        assert "has no 'TWO' here" in decode(tree).reason
        assert RAN == []

    @pytest.mark.parametrize(
        ("mark", "name", "content", "reason"),
        [
            ("dataclass", "no_such.module:Config", {}, "has not imported 'no_such.module'; do th"),
            ("dataclass", "tests.configs:Gone", {}, "is not known here; the sides' code"),
            ("dataclass", "tests.configs:Shape", {}, "is no dataclass in this process"),
            ("namedtuple", "tests.configs:Base", {}, "is no namedtuple in this process"),
            ("enum", "tests.configs:Base", "x", "is no enum in this process"),
            ("dataclass", "tests.configs:Base", {"last": 1}, "the fields 'first' here, and 'last'"),
            ("dataclass", "tests.configs:Base", {"first": 1, "x": 1}, "and 'first, x' there"),
            ("namedtuple", "tests.configs:Shape", {"rows": 1}, "the fields 'rows, columns' here"),
            ("dataclass", "__main__:Config", {}, "in the other side's console or notebook"),
            ("dataclass", "tests.configs:RAN", {}, "is not known here"),
            ("dataclass", "tests.configs:dataclasses.Field", {}, "is not known here"),
            ("dataclass", "tests.configs:train.__class__", {}, "is not known here"),
            ("dataclass", "builtins:dict", {}, "is no dataclass"),
            ("dataclass", "os:system", {}, "is not known here"),
            ("dataclass", "", {}, "is not known here"),
            ("dataclass", "tests.configs:", {}, "is not known here"),
            ("dataclass", ":" * 10**6, {}, "not"),
            ("dataclass", "tests.configs:" + "x." * 10**6, {}, "not"),
            ("enum", "tests.configs:Precision", "x" * 10**6, "has no 'xxx"),
        ],
    )  # fmt: skip
    def test_of_what_is_not_here_are_no_message_and_no_harm(
        self, mark: str, name: str, content: Any, reason: str
    ) -> None:
        unreadable = decode([{"$": mark, "items": [name, content]}])
        assert reason in unreadable.reason
        assert len(unreadable.reason) < 500

    def test_of_a_module_that_nobody_imported_import_nothing(self) -> None:
        assert "this" not in sys.modules
        assert "antigravity" not in sys.modules
        for name in ("this:Zen", "antigravity:fly"):
            decode({"$": "dataclass", "items": [name, {}]})
        assert "this" not in sys.modules
        assert "antigravity" not in sys.modules

    def test_of_a_lazy_module_do_not_load_it(self) -> None:
        class Lazy(types.ModuleType):
            def __getattribute__(self, name: str) -> Any:
                RAN.append(name)
                raise AssertionError(name)

        sys.modules["tests.lazy"] = Lazy("tests.lazy")
        try:
            assert "not known here" in decode({"$": "enum", "items": ["tests.lazy:A", "B"]}).reason
        finally:
            del sys.modules["tests.lazy"]
        assert RAN == []


def test_a_message_that_cannot_be_read_leaves_the_channel_usable() -> None:
    @dataclasses.dataclass
    class Later:
        one: int

    module = types.ModuleType("tests.later")
    Later.__module__, Later.__qualname__ = "tests.later", "Later"
    vars(module)["Later"] = Later
    with Worker(echo) as worker:
        sys.modules["tests.later"] = module  # after the fork
        try:
            worker.send([Later(1), b"x" * (1 << 20)])
            worker.send([Later(2)])
            worker.send("and more")
            for _ in range(2):
                said = worker.recv(T)
                assert "cannot receive what coordinator sent: " in said
                assert "'tests.later:Later' is not known here" in said
                assert "has not imported 'tests.later'" in said
            assert worker.recv(T) == "and more"
        finally:
            del sys.modules["tests.later"]


SCRIPT = """
import dataclasses, enum, json, sys
from miniray import Cluster, NodeConfig, Worker

class Kind(enum.Enum):
    ONE = 1

@dataclasses.dataclass
class Config:
    kind: Kind

def work(channel):
    for message in channel:
        assert type(message) is Config and message.kind is Kind.ONE
        channel.send([message, type(message).__module__])

if __name__ == "__main__":
    sent = Config(Kind.ONE)
    said = []
    with Worker(work) as worker:
        worker.send(sent)
        arrived, module = worker.recv(60)
        assert type(arrived) is Config and arrived == sent
        said.append(module)
    with Cluster([NodeConfig.local(1)]) as cluster:
        (worker,) = cluster.start("my_script.work")
        worker.send(sent)
        arrived, module = worker.recv(60)
        assert type(arrived) is Config and arrived == sent
        said.append(module)
    print(json.dumps(said))
"""
CONSOLE = """
import dataclasses, sys
from miniray import RemoteWorker

@dataclasses.dataclass
class Config:
    one: int

with RemoteWorker("127.0.0.1", int(sys.argv[1])) as worker:
    worker.send(Config(1))
    print(worker.recv(60))
    worker.send("more")
    print(worker.recv(60))
"""


def python(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=T,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestClassesOfTheScript:
    @pytest.mark.thorough
    @pytest.mark.parametrize("how", [["my_script.py"], ["-m", "my_script"]], ids=["file", "-m"])
    def test_go_to_a_fork_and_to_a_node_where_it_is_a_module(
        self, how: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "my_script.py").write_text(SCRIPT)
        assert json.loads(python(*how, folder=tmp_path)) == ["__main__", "my_script"]

    def test_of_a_console_are_refused_by_who_does_not_have_it(self, tmp_path: Path) -> None:
        server = Server("tests.configs.echo")
        try:
            first, second = python("-c", CONSOLE, str(server.port), folder=tmp_path).splitlines()
        finally:
            server.stop()
        assert "'Config' is defined in the other side's console or notebook" in first
        assert "put it into a module that both import" in first
        assert second == "more"


LOUD_FIELDS = {"value": 1, "scaled": 1}
LOUD_SHAPE = {"rows": 1, "columns": 1}


class TestHostileTrees:
    """What no `take_apart` returns."""

    MARKS = st.sampled_from([*sendable_values.MARKS, "dict", "tuple", "buffer"])
    NAMES = st.sampled_from(["tests.configs:Config", "tests.configs:Precision", "a:b"])

    @given(MARKS, st.lists(values | NAMES, max_size=4))
    @settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
    def test_raise_only_protocol_errors(self, mark: str, items: list[Any]) -> None:
        tree, buffers = codec.encode(items)
        memories = {at: bytearray(bytes(one.data)) for at, one in enumerate(buffers)}
        try:
            codec.decode(
                {"$": mark, "items": tree, "index": 0}, [b.spec for b in buffers], memories
            )
        except ProtocolError:
            return

    @pytest.mark.parametrize(
        ("mark", "items"),
        [
            ("set", [[1]]),
            ("set", [{"a": 1}]),
            ("set", [{"$": "set", "items": []}]),
            ("set", [1, 1]),
            ("set", [1, True]),
            ("set", [1, 1.0]),
            ("set", [float("nan")]),
            ("set", [{"$": "tuple", "items": [[1]]}]),
            ("set", [{"$": "frozenset", "items": [[1]]}]),
            ("set", [{"$": "dataclass", "items": ["tests.configs:Base", {"first": 1}]}]),
            ("set", [{"$": "enum", "items": ["tests.configs:LoudEnum", "ONE"]}]),
            ("set", [{"$": "dataclass", "items": ["tests.configs:Validated", LOUD_FIELDS]}]),
            ("set", [{"$": "namedtuple", "items": ["tests.configs:LoudShape", LOUD_SHAPE]}]),
            ("dict", [[{"$": "namedtuple", "items": ["tests.configs:LoudShape", LOUD_SHAPE]}, 1]]),
            ("dict", [[1, 2], [True, 3]]),
            ("dict", [[1, 2], [1.0, 3]]),
            ("dict", [["a", 2], ["a", 3]]),
            ("dict", [[[1], 2]]),
            ("complex", ["1", "2"]),
            ("complex", [1, 2]),
            ("complex", [1.0]),
            ("complex", [{"$": "dataclass", "items": ["tests.configs:Base", {"first": 1}]}, 1.0]),
            ("range", [1.0, 2, 3]),
            ("range", [1, 2, 0]),
            ("range", [True, 2, 3]),
            ("slice", [1, 2, "3"]),
            ("OrderedDict", [{}, 3]),
            ("OrderedDict", [[["a", 1]], None]),
            ("OrderedDict", [{}]),
            ("Counter", [[]]),
            ("defaultdict", ["eval", {}]),
            ("defaultdict", ["object", {}]),
            ("Path", [3]),
            ("Path", ["a", "b"]),
            ("date", ["2026-02-30"]),
            ("date", [20260101]),
            ("time", ["25:00", 0, None]),
            ("datetime", ["2026-01-01", 2, None]),
            ("datetime", ["2026-01-01", 0, "UTC"]),
            ("timedelta", [10**10, 0, 0]),
            ("timezone", [{"$": "timedelta", "items": [2, 0, 0]}, None]),
            ("ZoneInfo", ["../../etc/passwd"]),
            ("ZoneInfo", ["/etc/localtime"]),
            ("ZoneInfo", [""]),
            ("ZoneInfo", ["a\0b"]),
            ("Decimal", ["1..2"]),
            ("UUID", ["x"]),
            ("numpy.scalar", ["<f4", "00"]),
            ("numpy.scalar", ["<f4", "00" * 8]),
            ("numpy.scalar", ["|O", "00" * 8]),
            ("numpy.scalar", ["<f4", "zz" * 4]),
            ("numpy.scalar", ["i2,i2", "00" * 4]),
            ("numpy.dtype", ["|O"]),
            ("numpy.dtype", ["i2,i2"]),
            ("torch.dtype", ["nn"]),
            ("torch.dtype", ["float33"]),
            ("torch.device", ["cuda:x"]),
            ("torch.device", ["toaster"]),
            ("torch.Size", [1.0]),
            ("torch.Size", [True]),
            ("torch.Size", [{"$": "dataclass", "items": ["tests.configs:Base", {"first": 1}]}]),
            ("enum", ["tests.configs:Precision", 1]),
            ("dataclass", ["tests.configs:Base", [1]]),
            ("dataclass", ["tests.configs:Base", {"$": "dict", "items": [[1, 1]]}]),
            ("dataclass", [3, {}]),
            ("dataclass", ["tests.configs:Base"]),
            ("namedtuple", ["tests.configs:Shape", [1, 2]]),
            ("pickle", ["cos\nsystem\n"]),
        ],
    )  # fmt: skip
    def test_of_these_kinds_are_refused(self, mark: str, items: list[Any]) -> None:
        RAN.clear()
        with pytest.raises(ProtocolError) as raised:
            decode([{"$": mark, "items": items}])
        assert len(str(raised.value)) < 400
        assert RAN == []

    def test_a_zone_that_this_machine_lacks_is_not_the_senders_fault(self) -> None:
        for name in ("Europe/Atlantis", "Europe"):
            assert "has no time zone" in decode({"$": "ZoneInfo", "items": [name]}).reason

    @pytest.mark.parametrize("mark", ["set", "dict"])
    def test_keys_of_one_hash_are_refused_on_both_sides(self, mark: str) -> None:
        modulus = sys.hash_info.modulus
        for count in (sendable_values.SAME_HASH_MAX, sendable_values.SAME_HASH_MAX + 1):
            numbers = [7 + modulus * n for n in range(count)] + [*range(100, 300)]
            message: Any = set(numbers) if mark == "set" else dict.fromkeys(numbers, 1)
            items = numbers if mark == "set" else [[n, 1] for n in numbers]
            if count > sendable_values.SAME_HASH_MAX:
                with pytest.raises(TypeError, match="101 keys of one hash"):
                    wire.encode(wire.MESSAGE, message)
                with pytest.raises(ProtocolError, match="101 keys of one hash"):
                    decode({"$": mark, "items": items})
            else:
                assert there_and_back(message) == message

    def test_a_grid_around_zero_is_no_attack(self) -> None:
        """hash(-1) is hash(-2), so all corners of a grid in six dimensions have one hash."""
        corners = {tuple(-1 - (n >> bit & 1) for bit in range(6)) for n in range(64)}
        grid = corners | {(x, y) for x in range(-40, 40) for y in range(-40, 40)}
        assert there_and_back(grid) == grid

    def test_a_stranger_may_send_no_marks_at_all(self) -> None:
        tree = '{"body":{"$":"set","items":[1]}}'
        with pytest.raises(ProtocolError, match="a handshake has no marks"):
            decode_text(tree, wire.AUTH, auth_only=True)
        assert decode_text(tree) == {1}


def test_a_header_with_a_name_twice_has_its_last() -> None:
    """As in Python's json; no encoder makes one, and it claims nothing that the last would not."""
    assert decode_text('{"body":{"$":"set","$":"tuple","items":[1,1]}}') == (1, 1)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda one: {1: one},
        lambda one: OrderedDict(a=one),
        lambda one: OrderedDict({1: one}),
        lambda one: defaultdict(list, a=one),
        lambda one: Base(one),
        lambda one: Shape(one, 0),
        lambda one: frozenset({one}),
    ],
)
def test_what_the_sender_takes_the_receiver_takes_at_any_depth(wrap: Any) -> None:
    message: Any = "core"
    for _ in range(codec.DEPTH_MAX - 1):
        message = wrap(message)
    assert there_and_back(message) == message
    message = wrap(wrap(message))
    with pytest.raises(TypeError, match=r"deeper than 100 levels|a key of"):
        wire.encode(wire.MESSAGE, message)


def test_an_int_of_more_digits_than_python_reads_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"more than 4300 digits; send hex\(n\)"):
        wire.encode(wire.MESSAGE, {"n": 10**5000})


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """Yield what the manual's examples are written in: usual imports, and its own classes."""
    (block,) = (one for one in blocks.find(MANUAL, "python") if one.title == "settings.py")
    settings_module = types.ModuleType("settings")
    sys.modules["settings"] = settings_module
    exec(block.text, vars(settings_module))
    yield {**vars(settings_module), **USUAL_NAMES}
    del sys.modules["settings"]


class TestTheManual:
    """Every example in its two tables is sent."""

    def rows(self, heading: str) -> list[list[str]]:
        text = MANUAL.read_text()
        table = text[text.index(f"\n| {heading} |") :].split("\n\n")[0]
        return [
            [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
            for row in table.splitlines()[3:]
        ]

    @needs_torch
    def test_what_it_says_can_be_sent_arrives_as_it_was(self, names: dict[str, Any]) -> None:
        rows = self.rows("what")
        assert len(rows) == 15
        headers = ""
        for _, examples, _ in rows:
            for code in CODE.findall(examples):
                value = eval(code, names)
                assert same(there_and_back(value), value), code
                headers += wire.encode(wire.MESSAGE, value).head[9:].decode()
        for mark in sendable_values.MARKS:
            assert f'{{"$":"{mark}"' in headers, f"an example of {mark} is missing"

    @needs_torch
    def test_what_it_says_is_refused_is_so_in_these_words(self, names: dict[str, Any]) -> None:
        rows = self.rows("what is refused")
        assert len(rows) == 13
        for _, examples, way_out in rows:
            for code in CODE.findall(examples):
                with pytest.raises(TypeError, match=re.escape(CODE.findall(way_out)[0])):
                    wire.encode(wire.MESSAGE, eval(code, names))
