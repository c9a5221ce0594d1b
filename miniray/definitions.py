"""The text by which a notebook has defined a function or a class, and the names that it uses.

A function knows its file and its line. Of a class Python keeps neither, so it is noted which cell
runs when it is new. Of one that is older than this module all cells have to say the same.
"""

import __future__

import ast
import contextlib
import functools
import inspect
import linecache
import re
import symtable
import sys
from typing import Any
from weakref import WeakKeyDictionary

FUTURE = __future__.annotations.compiler_flag
TEXTS_MAX = 512  # whose trees and names are kept

Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_cell_of: WeakKeyDictionary[type, str] = WeakKeyDictionary()
_running = [""]


def note_classes(cell: str) -> None:
    """Note that what is new is of the cell that has run so far, and that this one runs now."""
    for value in [*vars(sys.modules["__main__"]).values()]:
        if isinstance(value, type) and value.__module__ == "__main__":
            _cell_of.setdefault(value, _running[0])
    _running[0] = cell


if _shell := getattr(sys.modules.get("__main__"), "get_ipython", None):
    note_classes(_shell().history_manager.input_hist_parsed[-1])
    _shell().events.register("pre_run_cell", lambda info: note_classes(info.raw_cell))


def find_definition(value: Any) -> tuple[Node, tuple[str, int, bool, str]]:
    """Return what has defined a function or class of `__main__`: a tree, file, line, and text.

    The file is what tracebacks call it; the bool is whether annotations stay text. Raises
    LookupError(problem, remedy) if it is not certain.
    """
    main, file, line, flags, texts = vars(sys.modules["__main__"]), "", 0, 0, list[str]()
    cells = main["In"] if isinstance(main.get("In"), list) else []
    if code := getattr(inspect.unwrap(value), "__code__", None):
        file, line, flags = code.co_filename, code.co_firstlineno, code.co_flags
        texts = ["".join(linecache.getlines(file))]
    elif isinstance(value, type) and _shell:
        note_classes(_running[0])
        flags, cell = _shell().compile.flags, _cell_of[value]
        texts = [cell] if cell else cells
    found = [one for text in texts for one in _definitions(text)]
    found = [one for one in found if one[1].name == value.__name__ and line in (0, one[0])]
    if not found:
        problem = "its text is not known: a call made it, or a plain prompt, a -c, or %%time's cell"
        raise LookupError(problem, "write it with def or class in a cell, or import it")
    first, node, text = found[-1]
    if any(ast.dump(one) != ast.dump(node) for _, one, _ in found[:-1]):
        raise LookupError("more than one text defines it", "define it once, and run that cell")
    for number, cell in enumerate(cells):
        file = f"<In[{number}]>" if cell.rstrip() == text.rstrip() else file
    above = ["if True:"] * bool(node.col_offset)
    text = "\n".join([*above, *text.split("\n")[first - 1 : node.end_lineno], ""])
    return node, (file, first - len(above), bool(flags & FUTURE), text)


@functools.lru_cache(TEXTS_MAX)
def _definitions(text: str) -> list[tuple[int, Node, str]]:
    """Return functions and classes that are not within others, each with its first line and text.

    The text is what IPython has made of it: there are no magics any more.
    """
    nodes = list[Node]()
    with contextlib.suppress(SyntaxError):  # such a cell was not run
        text = _shell().transform_cell(text) if _shell else text
        nodes += [node for node in ast.walk(ast.parse(text)) if isinstance(node, Node)]
    top = {*nodes} - {one for node in nodes for one in [*ast.walk(node)][1:]}
    return [((*node.decorator_list, node)[0].lineno, node, text) for node in nodes if node in top]


@functools.lru_cache(TEXTS_MAX)
def names_in(is_future: bool, text: str) -> tuple[list[str], ...]:
    """Return the names that some text looks at when it runs, all global ones, perhaps, and dotted.

    Perhaps is in an annotation that nobody evaluates, or if a class body does not bind it first.
    """
    first, needed, perhaps, dotted = set[str](), set[str](), set[str](), set[str]()
    future = "from __future__ import annotations\n" * is_future
    tables = [symtable.symtable(future + text, "<cell>", "exec")]
    for table in tables:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and table.get_type() != "function":
                first.add(symbol.get_name())
            if symbol.is_referenced() if table.get_type() == "module" else symbol.is_global():
                needed.add(symbol.get_name())
            elif table.get_type() == "class" and symbol.is_referenced():
                perhaps.add(symbol.get_name())
        tables += table.get_children()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            dotted.add(ast.unparse(node))
        if annotation := getattr(node, "annotation", getattr(node, "returns", None)):
            perhaps.update(re.findall(r"\w+", ast.unparse(annotation)))
    return sorted(first), sorted(needed), sorted(perhaps), sorted(dotted)
