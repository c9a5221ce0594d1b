"""What of a notebook goes as text, and what is refused: cells that are run here, and no kernel.

`test_notebooks.py` has the kernels. Here a module takes the place of the notebook's `__main__`, and
another that of a node's.
"""

import __future__

import contextlib
import json
import linecache
import sys
import textwrap
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from miniray import cells, definitions
from miniray.work_fn import main_module

FUTURE = __future__.annotations.compiler_flag


class Notebook:
    """Cells that are run one after the other, as in IPython, and a node that gets their text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.node = ModuleType("__main__"), ModuleType("__main__")
        self.replace = monkeypatch
        monkeypatch.setattr(cells, "_defined", {})
        monkeypatch.setattr(definitions, "_running", [""])
        monkeypatch.setattr(definitions, "_shell", lambda: self)
        self.compile = SimpleNamespace(flags=0)
        vars(self.here).update(In=[""], get_ipython=lambda: self)
        self._be(self.here)

    def _be(self, main: ModuleType) -> None:
        self.replace.setitem(sys.modules, "__main__", main)

    def transform_cell(self, cell: str) -> str:
        return cell

    def run(self, text: str) -> None:
        """Run a cell; what it raises is shown, and that is all."""
        text = textwrap.dedent(text)
        definitions.note_classes(text)
        self.here.In.append(text)
        file = f"<cell {len(self.here.In)} {id(self)}>"
        linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
        code = compile(text, file, "exec", self.compile.flags, dont_inherit=True)
        self.compile.flags |= code.co_flags & FUTURE
        with contextlib.suppress(ZeroDivisionError):
            exec(code, vars(self.here))

    def there(self, *args: Any, function: str = "f") -> Any:
        """Call a function of the notebook on the node."""
        pieces = json.loads(json.dumps(cells.collect(f"__main__.{function}")))
        self._be(self.node)
        try:
            cells.define(pieces)
            return getattr(self.node, function)(*args)
        finally:
            self._be(self.here)

    def both(self) -> tuple[Any, Any]:
        return self.here.f(), self.there()

    def refused(self) -> str:
        with pytest.raises(TypeError, match=r"^cannot send ") as caught:
            cells.collect("__main__.f")
        return str(caught.value)

    def new_node(self) -> None:
        self.node = ModuleType("__main__")
        self.replace.setattr(cells, "_defined", {})


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    return Notebook(monkeypatch)


TWICE = """
    import functools
    def twice(fn):
        @functools.wraps(fn)
        def inner(*args):
            return 2 * fn(*args)
        return inner
"""


class TestTheSameResult:
    @pytest.mark.parametrize(
        "cell",
        [
            # Of two classes of a name that which was made.
            """
            if True:
                class Net:
                    def name(self):
                        return "cpu"
            def f():
                return Net().name()
            """,
            """
            class Holds:
                lr = 1
            def other():
                class Holds:
                    lr = 99
                return Holds
            class Within:
                class Holds:
                    lr = 98
            def f():
                return Holds.lr
            """,
            # A class body that uses a global of a name that it binds.
            """
            rate = 0.5
            class Config:
                rate: float = rate
            def f():
                return Config.rate
            """,
            # Or that of a global which is not what it uses.
            """
            x = {}
            class Point:
                @property
                def x(self):
                    return 1
                @x.setter
                def x(self, x):
                    pass
            def f():
                return Point().x
            """,
            # Classes that name each other.
            """
            class Base:
                def make(self):
                    return Derived()
            class Derived(Base):
                pass
            class Third(Derived):
                pass
            def f():
                return type(Base().make()).__name__
            """,
            """
            import functools
            def deco(fn):
                @functools.wraps(fn)
                def inner(*args):
                    return fn(*args) + len(helper.__name__)
                return inner
            @deco
            def helper(x):
                return x
            def f():
                return helper(1)
            """,
            # What is called while a class is made.
            """
            import enum
            def double(number):
                return 2 * number
            class Size(enum.Enum):
                ONE = 1
                def __init__(self, number):
                    self.twice = double(number)
            def f():
                return Size.ONE.twice
            """,
            """
            from dataclasses import dataclass
            @dataclass
            class Private:
                __x: int = 1
            def f():
                return Private()._Private__x
            """,
            "def triple(n):\n    return 3 * n\ndef f():\n    return triple.__name__, [triple(2)]",
            "NUMBERS = (10**5000, -3, True, -0.0, 1e300, b'x')\ndef f():\n    return NUMBERS",
            "Z = complex('nan'), complex('-inf'), 2j\ndef f():\n    return str(Z)",
            "import xml.etree.ElementTree\ndef f():\n    return xml.etree.ElementTree.__name__",
            "text = 'a\u2028b'\nclass C:\n    x = 1\ndef f():\n    return C.x",
            "In = 5\ndef f():\n    return 1",
            """
            import enum, functools
            from dataclasses import dataclass
            from typing import NamedTuple

            def keep(method):
                def call(self):
                    return method(self)
                return call

            @dataclass(slots=True)
            class Slots:
                x: int = 1
                @property
                def value(self):
                    return self.x
                @value.setter
                def value(self, new):
                    self.x = new
                @keep
                def get(self):
                    return self.x

            class Color(enum.IntEnum):
                RED = 1

            class Pair(NamedTuple):
                one: int = 2

            @functools.lru_cache
            def plain(number=1):
                number = 2
                return number

            def f():
                return Slots(3).get(), Slots().value, Color.RED.value, Pair().one, plain()
            """,
            # What says itself how it is made again.
            """
            import enum, logging, re, uuid
            from dataclasses import dataclass
            from datetime import datetime, timedelta, timezone
            from decimal import Decimal
            from fractions import Fraction
            from pathlib import Path
            class Color(enum.Enum):
                RED = 1
            @dataclass(frozen=True)
            class Config:
                rate: float = 0.5
            @dataclass(frozen=True, slots=True)
            class Slots:
                rate: float = 0.5
            DATA, WORD, RED = Path("data"), re.compile("a+", re.I), Color.RED
            WHEN = datetime(2020, 1, 2, tzinfo=timezone.utc), timedelta(days=1)
            MORE = Decimal("1.10"), Fraction(1, 3), uuid.UUID(int=5), frozenset({"a"}), range(3)
            HELD = Config(0.1), Slots(0.2), Ellipsis, NotImplemented
            log = logging.getLogger("mine")
            def f():
                assert RED is Color.RED and log is logging.getLogger("mine")
                assert type(HELD[0]) is Config and type(HELD[1]) is Slots
                return str((DATA, WORD, WHEN, MORE, HELD, log))
            """,
            # Names for types.
            """
            import collections.abc
            from typing import Callable, Generic, List, Literal, NamedTuple
            from typing import Optional, TypeVar
            class Net:
                pass
            T = TypeVar("T", bound=Net)
            S, Into = T, TypeVar("Into", contravariant=True)
            class Box(Generic[T]):
                def of(self, item: T) -> "Boxes":
                    return item
            Batch, Shape = dict[str, int], tuple[int, ...]
            Nets, Boxes = list[Net], Optional[Box[Net]]
            Loss, Other = Callable[[Net, int], List[T]], collections.abc.Callable[[int], Net]
            Mode, Either = Literal["a", "b"], int | None
            class Pair(NamedTuple):
                one: int
                other: int = 5
            PAIR = Pair(1)
            def f(batch: Batch = None, loss: Loss = None, other: Other = None) -> Shape:
                assert Box.__parameters__ == (T,) and Nets.__args__ == (Net,) and S is T
                assert Into.__contravariant__ and not T.__contravariant__
                assert type(PAIR) is Pair and Box[Net] in Boxes.__args__ and T.__bound__ is Net
                kinds = Batch, Shape, Nets, Boxes, Loss, Other, Mode, Either
                return str(kinds), tuple(PAIR)
            """,
            """
            from functools import partial
            def scale(x, by, plus=0):
                return x * by + plus
            thrice = partial(scale, by=3, plus=1)
            def f():
                assert thrice.func is scale
                return thrice(2), partial(thrice, plus=2)(2)
            """,
            # Names that a node's notebook has for something else.
            """
            from datetime import datetime
            from pathlib import Path
            NOW, DATA, PosixPath, pathlib = datetime(2020, 1, 2), Path("a"), 1, 2
            def f():
                return NOW.year, type(DATA).__name__, PosixPath, pathlib, datetime.__name__
            """,
            # What is made of what names it.
            """
            import enum
            from functools import partial
            class Color(enum.Enum):
                RED = 1
                def default(self):
                    return helper()
            DEFAULT = Color.RED
            def helper(one=DEFAULT):
                return one.name
            def fact(n, by=1):
                return n if n < 2 else n * less(n - 1)
            less = partial(fact, by=1)
            def f():
                return Color(1).default(), fact(4)
            """,
            # Names that imports of ours could take.
            """
            import json, re, time
            from pathlib import Path
            _json, _re, _time, DATA = 5, re.compile("a+"), None, Path("a")
            class _pathlib_PosixPath:
                pass
            def f():
                global _time
                if _time is None:
                    _time = time.sleep(0) or 3
                names = str(DATA), json.dumps(_json), re.sub(_re, "b", "aa")
                return names, _time, _pathlib_PosixPath.__name__
            """,
            # Two of a name, and names that are not the class's.
            """
            class Net:
                pass
            N, size = 1, 3
            def double(number=N):
                return 2 * number
            class A:
                table = {}
                table["net"] = Net
                __kind = Net
                a = N
                a = a + 1
                b = c = N
                twice = double
                size = 2
                def of(self, size=size):
                    return size
                def __new__(cls, number=N):
                    return super().__new__(cls)
                @staticmethod
                def add(number=N):
                    return number
                def __repr__(self):
                    return "A"
                __str__ = __repr__
            def f():
                said = [*A.table], A._A__kind is Net, str(A()), A().of()
                return said, A.a, A.b, A.add(), A.twice()
            """,
            """
            from typing import Protocol
            class Sized(Protocol):
                size: int = 3
            class Box(Sized):
                pass
            def f():
                return Box().size
            """,
            # Whose attributes raise what they like, and who has names that nobody has.
            """
            import threading
            from functools import partial
            class AttrDict(dict):
                __getattr__ = dict.__getitem__
            class Named:
                def __init__(self, name):
                    self.known = {"name": name}
                def __getattr__(self, name):
                    return self.known[name]
                def __eq__(self, other):
                    return self.name == other.name
                def __hash__(self):
                    return hash(self.name)
            NAMED, MADE = Named("a"), partial(dict, **{"a-b": 1, "x=2, y": 3})
            def f():
                return NAMED.name, MADE(), AttrDict(a=1).a
            """,
            """
            import cmath
            from dataclasses import KW_ONLY, dataclass
            from datetime import datetime
            WHEN, Z = datetime(2020, 10, 25, 2, 30, fold=1), complex(-1, -0.0)
            list = (1, 2)
            @dataclass(frozen=True)
            class Config:
                _: KW_ONLY
                sizes: tuple = ()
            HELD = Config(sizes=("a",))
            def f():
                return WHEN.fold, WHEN.timestamp(), cmath.sqrt(Z), list, repr(HELD)
            """,
            # Run while a class is made, in a comprehension.
            """
            def double(number):
                return 2 * number
            class Sizes:
                sizes = [double(size) for size in (1, 2)]
            def f():
                return Sizes.sizes
            """,
        ],
    )
    def test_there_as_here(self, notebook: Notebook, cell: str) -> None:
        notebook.run(cell)
        here, there = notebook.both()
        assert here == there

    def test_a_class_of_a_cell_that_failed_is_not_what_goes(self, notebook: Notebook) -> None:
        cell = "{}\nclass Holds:\n    from pathlib import Path\n    where = Path('{}')"
        notebook.run(cell.format("", "right") + "\ndef f():\n    return str(Holds.where)")
        notebook.run(cell.format("1 / 0", "wrong"))
        assert notebook.both() == ("right", "right")
        notebook.run(cell.format("", "newer"))
        assert notebook.both() == ("newer", "newer")

    def test_a_class_goes_from_the_cell_that_still_runs(self, notebook: Notebook) -> None:
        notebook.run("class Holds:\n    lr = 1\ndef f():\n    return Holds.lr")
        notebook.here.there = notebook.there
        notebook.run("class Holds:\n    lr = 2\nsaid = there()")
        assert notebook.here.said == 2

    def test_a_class_that_is_older_than_miniray_goes_if_all_cells_agree(
        self, notebook: Notebook
    ) -> None:
        cell = "class Holds:\n    lr = {}\ndef f():\n    return Holds.lr"
        for _ in range(2):
            notebook.run(cell.format(1))
        definitions.note_classes("")
        notebook.replace.setattr(definitions, "_cell_of", dict.fromkeys([notebook.here.Holds], ""))
        assert notebook.both() == (1, 1)
        notebook.here.In.append(cell.format(2))
        assert "Holds: more than one text defines it; define it once, and run" in notebook.refused()
        notebook.run(cell.format(3))
        assert notebook.both() == (3, 3)

    def test_a_cell_that_is_run_again_is_defined_anew(self, notebook: Notebook) -> None:
        notebook.run("N = 1")
        cell = "def f(x=N):\n    return x"
        notebook.run(cell)
        assert notebook.both() == (1, 1)
        notebook.run("N = 2")
        notebook.run(cell)
        assert notebook.both() == (2, 2)

    def test_a_constant_is_made_anew_if_what_it_is_made_of_is(self, notebook: Notebook) -> None:
        notebook.run("import enum\nfrom functools import partial\nfrom typing import TypeVar")
        cell = """
            class Color(enum.Enum):
                RED = {}
            RED = Color.RED
            T = TypeVar("T", bound=Color)
            S = T
            def double(number):
                return {} * number
            twice = partial(double, 1)
            old = double
            def f():
                return RED is Color.RED, S is T, T.__bound__ is Color, twice(), old(1)
        """
        for number in (1, 2):
            notebook.run(cell.format(1, number))
            assert notebook.both() == ((True, True, True, number, number),) * 2
        notebook.run("RED = Color.RED")
        made = notebook.node.RED
        notebook.there()
        assert notebook.node.RED is made


class TestAnnotations:
    def test_one_that_is_not_evaluated_brings_its_class(self, notebook: Notebook) -> None:
        notebook.run("from __future__ import annotations")
        notebook.run("""
            from dataclasses import dataclass, fields
            from typing import ClassVar
            @dataclass
            class Config:
                rate: float
                shared: ClassVar[int] = 3

            def f(config: Config, later: Later = None) -> dict[str, Config]:
                return [field.name for field in fields(Config)]
        """)
        assert notebook.there(None) == ["rate"]
        assert notebook.node.Config.__annotations__["rate"] == "float"

    def test_nor_is_a_text(self, notebook: Notebook) -> None:
        notebook.run("class Config:\n    pass\ndef f(config: 'list[Config]'):\n    return 1")
        assert notebook.there(None) == 1
        assert notebook.node.Config.__qualname__ == "Config"

    def test_what_does_not_go_is_not_asked_for(self, notebook: Notebook) -> None:
        notebook.run("Batch = dict[str, int]\ndef f() -> 'Batch':\n    return 1")
        assert notebook.there() == 1
        notebook.run("Batch = {}\ndef f() -> Batch:\n    return 1")
        assert "f, which names Batch: a dict stays here" in notebook.refused()

    def test_whether_they_are_is_asked_of_the_code(self, notebook: Notebook) -> None:
        notebook.run("from __future__ import annotations\nclass C:\n    x: Later")
        notebook.run("def f() -> Later:\n    return C.__annotations__")
        notebook.run("annotations = {}")
        assert notebook.there() == {"x": "Later"}

    def test_a_traceback_says_the_line(self, notebook: Notebook) -> None:
        notebook.run("from __future__ import annotations")
        notebook.run("def f():\n    return 1 / 0")
        with pytest.raises(ZeroDivisionError) as caught:
            notebook.there()
        last = caught.traceback[-1]
        assert (str(last.path), last.lineno + 1) == ("<In[2]>", 2)


class TestRefused:
    def test_what_is_not_there(self, notebook: Notebook) -> None:
        assert notebook.refused() == (
            "cannot send f: this notebook has nothing of that name; run its cell"
        )

    @pytest.mark.parametrize(
        ("cell", "said"),
        [
            (
                "table = {}\ndef f():\n    return table",
                "f, which names table: a dict stays here; pass",
            ),
            (
                "import threading\nlock = threading.Lock()\n"
                "def g():\n    with lock:\n        pass\ndef f():\n    g()",
                "f, which names g, which names lock: a lock stays here; pass it as an argument",
            ),
            (
                "class Net:\n    pass\nnet = Net()\ndef f():\n    return net",
                "net: a Net stays here",
            ),
            ("g = lambda: 1\ndef f():\n    return g()", "g: it is a lambda; write it with def"),
            (
                "def g(): pass\nold = g\ndef g(): pass\ndef f():\n    old()",
                "old: it is g, and g is something else by now; write it with def",
            ),
            ("exec('def f(): pass')", "f: its text is not known: a call made it, or a plain"),
            (
                "from collections import namedtuple\nPair = namedtuple('Pair', 'one other')\n"
                "Pair.sum = sum\ndef f():\n    return Pair(1, 2)",
                "f, which names Pair: its text is not known: a call made it, or a plain prompt",
            ),
            *(
                (
                    f"import collections, functools, itertools, types\nX = {made}\ndef f():\n    X",
                    f"X: {why}",
                )
                for made, why in {
                    "collections.Counter('aab')": "a Counter stays here; pass it as an argument",
                    "collections.OrderedDict(a=1)": "an OrderedDict stays here",
                    "collections.deque([1])": "a deque stays here",
                    "types.SimpleNamespace(a=1)": "a SimpleNamespace stays here",
                    "{1}": "a set stays here",
                    "('a', [1])": "a list stays here",
                    "itertools.count()": "a count stays here",
                    "[].append": "a builtin_function_or_method stays here",
                    "functools.partial(print, {})": "a dict stays here",
                    "functools.partial(lambda: 1)": "it is a lambda; write it with def",
                }.items()
            ),
            (
                "from functools import partial\ndef g(): pass\nX = partial(g)\ndef g(): pass\n"
                "def f():\n    X()",
                "f, which names X: it is g, and g is something else by now",
            ),
            (
                "class Bag(list):\n    def __hash__(self):\n        return 1\n"
                "BAG = Bag([1])\ndef f():\n    return BAG",
                "f, which names BAG: a Bag stays here",
            ),
            (
                "from pathlib import Path\nDATA = Path('a')\ndef f(x=DATA): pass\nDATA = Path('b')",
                "f: its default DATA is another by now; run its cell again",
            ),
            (
                "LR = 1\nclass Net:\n    lr = LR\ndef f():\n    return Net.lr\nLR = 2",
                "f, which names Net: its lr is another by now; run its cell again",
            ),
            # What a name in a class is now, whatever type it has.
            *(
                (
                    f"from pathlib import Path\nN = 1\ndef g(): pass\nclass A:\n    {body}\n"
                    f"def f():\n    return A\n{later}",
                    f"f, which names A: its {name} is another by now; run its cell again",
                )
                for body, later, name in [
                    ("x = N", "N = Path('a')", "x"),
                    ("x = None", "A.x = (6, 4)", "x"),
                    ("x = (1, 2)", "A.x = (1, 3)", "x"),
                    ("x = -1", "A.x = 1", "x"),
                    ("x = y = 1", "A.y = 2", "y"),
                    ("__x = 1", "A._A__x = 2", "__x"),
                    ("x = g", "def g(): pass", "x"),
                    ("def __init__(self, x=N): pass", "N = 2", "default N"),
                    ("@classmethod\n    def make(cls, *, x=N): pass", "N = 2", "default N"),
                ]
            ),
            (
                "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass A:\n    x: int\n"
                "ONE = A(1)\nclass B:\n    one = ONE\ndef f():\n    return B.one\n"
                "@dataclass(frozen=True)\nclass A:\n    x: int\nONE = A(2)",
                "f, which names B: its one is another by now; run its cell again",
            ),
            (
                "from typing import NamedTuple\nN = 1\nclass A(NamedTuple):\n    x: int = N\n"
                "def f():\n    return A()\nN = 2",
                "f, which names A: its x is another by now; run its cell again",
            ),
            # Of what a call has made, a node would make a second one, or another.
            (
                "from collections import namedtuple\nPt = namedtuple('Point', 'x')\nO = Pt(0)\n"
                "def f():\n    return O",
                "f, which names O: it is Point; write it with def, at the top of a cell",
            ),
            (
                "from collections import namedtuple\nPoint = namedtuple('Point', 'x y')\n"
                "def f():\n    return Point",
                "f, which names Point: its text is not known: a call made it",
            ),
            (
                "from typing import NewType\nUser = NewType('User', int)\ndef f():\n    User",
                "f, which names User: its text is not known: a call made it",
            ),
            (
                "from typing import Dict, TypeVar\nKey = TypeVar('K')\nX = Dict[Key, int]\n"
                "def f():\n    return X",
                "f, which names X: its name is K; give it that name here",
            ),
            (
                "from typing import TypeVar\nT = TypeVar('T')\ntry:\n"
                "    T.__infer_variance__ = True\nexcept AttributeError:\n"
                "    T = TypeVar('T', infer_variance=True)\ndef f():\n    return T",
                "f, which names T: a TypeVar stays here",
            ),
            # No call makes the slots' state again.
            (
                "class Point:\n    __slots__ = ('x',)\n    def __hash__(self):\n        return 1\n"
                "X = Point()\nX.x = 1\ndef f():\n    return X",
                "f, which names X: a Point stays here",
            ),
            (
                "class Ring:\n    def __hash__(self):\n        return 1\nX = Ring()\nX.next = X\n"
                "def f():\n    return X",
                "f, which names X: no text makes it: it may hold itself; make it within",
            ),
            (
                "from typing import List\nclass Net: pass\nX = List['Net']\ndef f():\n    return X",
                "f, which names X: a ForwardRef stays here",
            ),
            (
                "import sys, types\nX = types.ModuleType('my-own')\ndef f():\n    return X",
                "f, which names X: no text makes it",
            ),
            (
                "import logging\nX = logging.LoggerAdapter(logging.getLogger('a'), {})\n"
                "def f():\n    return X",
                "f, which names X: a LoggerAdapter stays here",
            ),
            (
                "class AttrDict(dict):\n    __getattr__ = dict.__getitem__\nX = AttrDict(a=1)\n"
                "def f():\n    return X.a",
                "f, which names X: an AttrDict stays here",
            ),
            (f"WORDS = 'word' * {1 << 18}\ndef f():\n    return WORDS", "1048"),
            # Wrapped after its def: the text has nothing of that.
            (
                f"{textwrap.dedent(TWICE)}\ndef f():\n    return 1\nf = twice(f)",
                "f: there is more to it than its def; decorate it there, or import it",
            ),
            (
                f"{textwrap.dedent(TWICE)}\n@twice\ndef g():\n    return 1\ng = twice(g)\n"
                "def f():\n    return g()",
                "f, which names g: there is more to it than its def",
            ),
            (
                "import functools\n@functools.singledispatch\ndef f(x):\n    return 'base'\n"
                "@f.register\ndef _(x: int):\n    return 'int'",
                "f: there is more to it than its def",
            ),
            (
                "if True:\n    class Net: pass\nelse:\n    class Net:\n        x = 1\n"
                "def f():\n    return Net",
                "f, which names Net: more than one text defines it",
            ),
            (
                "class Base: pass\nclass Net(Base): pass\nclass Base: pass\n"
                "def f():\n    return Net",
                "f, which names Net: its Base is another by now; run its cell again",
            ),
            (
                "class Config:\n    rate: float = 0.5\ndef f():\n    return Config.rate\n"
                "Config.rate = 0.1",
                "f, which names Config: its rate is another by now; run its cell again",
            ),
            (
                "N, M = 1, (2, 3)\ndef f(a, x=N, *, m=M): pass\nN, M = 1, (2, 4)",
                "f: its default M is another by now; run its cell again",
            ),
            (
                "import json\nfrom json import loads\n"
                "def f():\n    return loads\nloads = type(loads)(loads.__code__, {}, 'loads')\n"
                "loads.__module__ = 'json'",
                "f, which names loads: it is not in json any more; import or make it anew",
            ),
        ],
        ids=lambda text: text[:20],
    )
    def test_by_its_name(self, notebook: Notebook, cell: str, said: str) -> None:
        notebook.run(cell)
        assert said in notebook.refused()


def test_what_a_module_holds_today_goes_by_its_value(notebook: Notebook) -> None:
    beside = ModuleType("beside")
    notebook.replace.setitem(sys.modules, "beside", beside)
    text = """
        from dataclasses import dataclass
        @dataclass(frozen=True)
        class Config:
            rate: int
        class Model:
            def __init__(self):
                self.rate = 1
    """
    exec(textwrap.dedent(text), vars(beside))
    notebook.run(
        "import beside\nconfig = beside.kept = beside.Config(5)\ndef f():\n    return config"
    )
    pieces = cells.collect("__main__.f")
    del vars(beside)["kept"]
    notebook._be(notebook.node)
    cells.define(pieces)
    assert notebook.node.f() == beside.Config(5)
    notebook._be(notebook.here)
    notebook.run("config = beside.kept = beside.Model()")
    assert "f, which names config: a Model stays here" in notebook.refused()


def test_a_notebook_is_one_whatever_file_a_script_has_left(notebook: Notebook) -> None:
    notebook.here.__file__ = __file__
    assert main_module() == (None, None)
