"""What of a notebook's cells goes as text, and what it does there: no kernel, and no other process.

With a real kernel, and on real ranks, it is in test_notebooks.py.
"""

import contextlib
import linecache
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

import pytest

from miniray import cells
from miniray.crew import Crew


class Cells:
    """A `__main__` in which cells are run, as IPython does it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.main = ModuleType("__main__")
        self._cells = vars(self.main).setdefault("In", [""])
        monkeypatch.setitem(sys.modules, "__main__", self.main)

    def run(self, cell: str) -> None:
        """Run a cell; it may fail."""
        text, file = textwrap.dedent(cell).strip("\n"), f"<cell {len(self._cells)} of {id(self)}>"
        self._cells.append(text)
        self._patch.setitem(linecache.cache, file, (len(text), None, [*_lines(text)], file))
        with contextlib.suppress(ZeroDivisionError):
            exec(compile(text, file, "exec", dont_inherit=True), vars(self.main))

    def there(self, name: str, *arguments: Any) -> Any:
        """Return what a function returns in another process, which has only what goes along."""
        pieces = cells.collect(f"__main__.{name}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "__main__", ModuleType("__main__"))
            patch.setattr(cells, "_defined", {})
            cells.define(pieces)
            return vars(sys.modules["__main__"])[name](*arguments)

    def both(self, name: str, *arguments: Any) -> Any:
        """Return what a function returns here and there, which has to be the same."""
        here = vars(self.main)[name](*arguments)
        assert self.there(name, *arguments) == here
        return here

    def refused(self, name: str) -> str:
        """Return why a function does not go."""
        with pytest.raises(TypeError, match=r"^cannot send ") as caught:
            cells.collect(f"__main__.{name}")
        return str(caught.value)


def _lines(text: str) -> Iterator[str]:
    return (f"{line}\n" for line in text.split("\n"))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Cells:
    return Cells(monkeypatch)


class TestTheRightText:
    """Of several that have a name: wrong text would give wrong results, and nobody would know."""

    @pytest.mark.parametrize(
        "later",
        [
            "class Trainer:\n    class Config:\n        rate = 2",
            "def test():\n    class Config:\n        rate = 2\n    return Config",
            "if True:\n    class Config:\n        rate = 2",
            "1 / 0\nclass Config:\n    rate = [2]",
            "1 / 0\nclass Config:\n    rate = -2",
            "Config.rate = 2",
        ],
    )
    def test_a_class_without_methods_is_the_last_of_its_name_or_none_is(
        self, notebook: Cells, later: str
    ) -> None:
        cell = "class Config:\n    rate = 1\ndef f():\n    return Config.rate"
        notebook.run("class Config:\n    rate = int('2')")  # an older one that would seem to fit
        notebook.run(cell)
        notebook.run("class Configuration:\n    pass")
        assert notebook.both("f") == 1
        notebook.run(later)
        assert "f, which names Config: its text is not known" in notebook.refused("f")
        notebook.run(cell)
        assert notebook.both("f") == 1

    @pytest.mark.parametrize(
        ("body", "later"),
        [
            ("sizes = [1, 2]", "Config.sizes.append(3)"),
            ("x: int", "1 / 0\n@dataclass\nclass Config:\n    y: int"),
        ],
    )
    def test_a_class_that_has_other_values_or_fields_is_another(
        self, notebook: Cells, body: str, later: str
    ) -> None:
        notebook.run("from dataclasses import dataclass")
        notebook.run(f"@dataclass\nclass Config:\n    {body}\ndef f():\n    return Config.__name__")
        assert notebook.both("f") == "Config"
        notebook.run(later)
        assert "f, which names Config: its text is not known" in notebook.refused("f")

    @pytest.mark.parametrize(
        "later",
        [
            "class Trainer:\n    class Config:\n        rate = 2",
            "1 / 0\nclass Config:\n    def rate(self):\n        return 2",
        ],
    )
    def test_methods_know_their_cell(self, notebook: Cells, later: str) -> None:
        notebook.run("class Config:\n    def rate(self):\n        return 1")
        notebook.run("def f():\n    return Config().rate()")
        notebook.run(later)
        assert notebook.both("f") == 1

    def test_of_two_in_one_cell_it_is_the_last(self, notebook: Cells) -> None:
        notebook.run("class A:\n    x = int(1)\nclass A:\n    x = int(2)\ndef f():\n    return A.x")
        assert notebook.both("f") == 2

    def test_methods_that_are_elsewhere_in_the_cell_are_of_another(self, notebook: Cells) -> None:
        cell = "class A:\n    def x(self):\n        return 1\n"
        notebook.run(f"{cell}1 / 0\n{cell.replace('1', '2')}def f():\n    return A().x()")
        notebook.run("def f():\n    return A().x()")
        assert notebook.both("f") == 1

    def test_a_class_that_was_changed_afterwards_is_refused(self, notebook: Cells) -> None:
        notebook.run("class A:\n    rate = 0.5\ndef f():\n    return A.rate")
        assert notebook.both("f") == 0.5
        notebook.run("A.rate = 0.1")
        assert "f, which names A: its text is not known: a call made or changed" in (
            notebook.refused("f")
        )

    def test_a_function_that_was_wrapped_without_a_decorator_is_refused(
        self, notebook: Cells
    ) -> None:
        notebook.run("""
            import functools

            def twice(function):
                @functools.wraps(function)
                def call(*arguments):
                    return 2 * function(*arguments)

                return call

            @twice
            def decorated():
                return 1

            def f():
                return 1

            f = twice(f)
        """)
        assert notebook.both("decorated") == 2
        assert "f: its text is not known: a call made or changed it" in notebook.refused("f")

    def test_of_a_method_that_is_defined_twice_or_wrapped_it_is_the_class(
        self, notebook: Cells
    ) -> None:
        notebook.run("""
            import enum, functools
            from dataclasses import dataclass

            def keep(method):
                def call(self):
                    return method(self)

                return call

            @dataclass(slots=True)
            class A:
                x: int = 1

                def get(self):
                    return 0

                @property
                def value(self):
                    return self.x

                @value.setter
                def value(self, new):
                    self.x = new

                @keep
                def get(self):
                    '''A word.'''
                    return self.x

            class Color(enum.IntEnum):
                RED = 1

            def f():
                return A(3).get(), A().value, Color.RED.value
        """)
        assert notebook.both("f") == (3, 1, 1)

    def test_a_class_whose_base_was_run_again_is_refused(self, notebook: Cells) -> None:
        notebook.run("class Base:\n    pass\nclass Derived(Base):\n    pass")
        notebook.run("def f():\n    return Derived.__name__")
        assert notebook.both("f") == "Derived"
        notebook.run("class Base:\n    pass")
        assert "f, which names Derived: its text is not known" in notebook.refused("f")

    def test_many_cells_are_not_all_read(
        self, notebook: Cells, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        notebook.run("class A:\n    pass\ndef f():\n    return A.__name__")
        for number in range(20):
            notebook.run(f"x = {number}")
        read = []
        parse = cells.ast.parse
        monkeypatch.setattr(cells.ast, "parse", lambda text: read.append(text) or parse(text))
        assert notebook.both("f") == "A"
        assert not [text for text in read if text.startswith("x =")]


class TestConstants:
    @pytest.mark.parametrize(
        "value",
        ["1", "(1, ('a', None))", "float('-inf')", "complex('nan')", "complex(1, 2)", "b'x'"],
    )
    def test_go_as_they_are(self, notebook: Cells, value: str) -> None:
        notebook.run(f"C = {value}\ndef f():\n    return repr(C)")
        notebook.both("f")


class TestWhatIsNamed:
    def test_a_builtin_that_ipython_has_wrapped_is_the_builtin(self, notebook: Cells) -> None:
        notebook.run("""
            import functools

            def wrap(function):
                @functools.wraps(function)
                def call(*arguments):
                    return function(*arguments)

                return call

            open = wrap(open)

            def f():
                with open("/dev/null") as file:
                    return file.read()
        """)
        assert [name for name, *_ in cells.collect("__main__.f")] == ["f"]
        assert notebook.both("f") == ""

    def test_two_classes_may_name_each_other(self, notebook: Cells) -> None:
        notebook.run("""
            def mark(kind):
                kind.mark = MARK
                return kind

            MARK = 7

            class Base:
                def make(self):
                    return Derived()

            @mark
            class Derived(Base):
                sizes = [double(size) for size in (1, 2)] if "double" in globals() else [2, 4]

            def double(number):
                return 2 * number

            def f():
                return Base().make().sizes, Derived.mark, [double(one) for one in (3,)]
        """)
        assert notebook.both("f") == ([2, 4], 7, [6])

    def test_what_a_comprehension_of_a_class_calls_is_there_before_it(
        self, notebook: Cells
    ) -> None:
        notebook.run("""
            def double(number):
                return 2 * number

            class A:
                sizes = [double(size) for size in (1, 2)]

            def f():
                return A.sizes
        """)
        assert notebook.both("f") == [2, 4]

    def test_an_annotation_names_its_class_even_if_it_is_not_evaluated(
        self, notebook: Cells
    ) -> None:
        notebook.run("from __future__ import annotations\nclass A:\n    pass")
        notebook.run("from __future__ import annotations\ndef f(a: A) -> Later:\n    return 1")
        assert [name for name, *_ in cells.collect("__main__.f")] == ["A", "f"]
        assert notebook.both("f", None) == 1


def test_a_cell_that_is_run_again_unchanged_is_defined_anew_for_what_it_needs_may_have_changed(
    notebook: Cells,
) -> None:
    cell = "class Derived(Base):\n    pass\ndef f():\n    return Derived.number"
    pieces = []
    for number in (1, 2):
        notebook.run(f"class Base:\n    number = {number}")
        notebook.run(cell)
        pieces.append(cells.collect("__main__.f"))
    with pytest.MonkeyPatch.context() as patch:
        there = ModuleType("__main__")
        patch.setitem(sys.modules, "__main__", there)
        patch.setattr(cells, "_defined", {})
        for number in (1, 2):
            cells.define(pieces[number - 1])
            assert there.f() == number


@pytest.mark.parametrize("call", ["map", "as_completed", "run"])
def test_what_is_refused_is_refused_at_once_and_the_cluster_goes_on(
    notebook: Cells, call: str
) -> None:
    notebook.run("table = {}\ndef f(number):\n    return table")
    crew = Crew()  # which raises NotImplementedError if anybody stops it
    crew.workers, crew.answers_calls = cast(Any, [None]), True
    with pytest.raises(TypeError, match="f, which names table: a dict stays here"):
        getattr(crew, call)(vars(notebook.main)["f"], [1])


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            "import threading\nlock = threading.Lock()\n"
            "def g():\n    with lock:\n        pass\ndef f():\n    g()",
            "f, which names g, which names lock: a lock stays here; pass it as an argument",
        ),
        ("class Net:\n    pass\nnet = Net()\ndef f():\n    return net", "net: a Net stays here"),
        ("g = lambda: 1\ndef f():\n    return g()", "g: it is a lambda; write it with def"),
        (
            "def g(): pass\nold = g\ndef g(): pass\ndef f():\n    old()",
            "old: it is g, and g is something else by now; write it with def",
        ),
        ("exec('def f(): pass')", "f: its text is not known"),
        (
            "from collections import namedtuple\nPair = namedtuple('Pair', 'one other')\n"
            "def f():\n    return Pair(1, 2)",
            "f, which names Pair: its text is not known: a call made or changed it, a prompt",
        ),
        (f"WORDS = 'word' * {1 << 18}\ndef f():\n    return WORDS", "1048"),
    ],
    ids=lambda text: text[:20],
)
def test_what_does_not_go_is_refused_by_its_name(notebook: Cells, cell: str, said: str) -> None:
    notebook.run(cell)
    assert said in notebook.refused("f")
