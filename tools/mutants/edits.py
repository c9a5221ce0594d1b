"""Make every mutant of a module: its source with one small edit that a test should notice."""

import ast
import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

Edit = tuple[str, int, int, str]  # the operator, from which byte to which, what is there instead
# fmt: off
SWAPPED: dict[type[ast.AST], tuple[type[Any], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.FloorDiv,),
    ast.FloorDiv: (ast.Mult,), ast.BitOr: (ast.BitAnd,), ast.BitAnd: (ast.BitOr,),
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A module's source before and after one edit."""

    file: str
    function: str
    operator: str
    line: int
    before: str
    after: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.file}\n{self.after}".encode()).hexdigest()[:16]

    @property
    def old_line(self) -> str:
        return self.before.splitlines()[self.line - 1].strip()

    def __str__(self) -> str:
        lines = self.before.splitlines(), self.after.splitlines()
        changes = list(difflib.unified_diff(*lines, lineterm="", n=1))[3:]
        return f"{self.file}:{self.line} in {self.function}, {self.operator}\n" + "\n".join(changes)


def make_mutants(file: str, source: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines."""
    return sorted(_Maker(file, source).mutants, key=lambda mutant: mutant.line)


class _Maker(ast.NodeVisitor):
    def __init__(self, file: str, source: str) -> None:
        self.file, self.source, self.data = file, source, source.encode()
        self.names: list[str] = []  # of the classes and functions around the present node
        self.mutants: list[Mutant] = []
        lines = self.data.splitlines(keepends=True)
        self._line_starts = [sum(map(len, lines[:index])) for index in range(len(lines))]
        self.visit(ast.parse(source))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assert | ast.JoinedStr | ast.Constant) and not _is_number(node):
            return  # what only our own code guarantees; the words of a message
        # One more or less of a limit is no matter; a hundred times as much is no limit.
        if isinstance(node, ast.Assign) and not self.names and _is_limit(node):
            self._add([("limit gone", *self._span(node.value), f"100 * ({_text(node.value)})")])
            return
        self._add(self._edits(node))
        around = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        self.names += around
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns", "decorator_list"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        self.visit(child)
        del self.names[len(self.names) - len(around) :]

    def _add(self, edits: Iterable[Edit]) -> None:
        for operator, start, end, text in edits:
            after = (self.data[:start] + text.encode() + self.data[end:]).decode()
            line = self.data[:start].count(b"\n") + 1
            function = ".".join(self.names) or "<module>"
            self.mutants.append(Mutant(self.file, function, operator, line, self.source, after))

    def _span(self, first: Any, last: Any = None) -> tuple[int, int]:
        last = last or first
        start = self._line_starts[first.lineno - 1] + first.col_offset
        return start, self._line_starts[last.end_lineno - 1] + last.end_col_offset

    def _edits(self, node: ast.AST) -> Iterator[Edit]:
        match node:
            case ast.Compare(ops=[op]):
                for swap in SWAPPED[type(op)]:
                    yield "comparison swapped", *self._span(node), _changed(node, ops=[swap()])
            case ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op) in SWAPPED:
                for swap in SWAPPED[type(op)]:
                    yield "operator swapped", *self._span(node), _changed(node, op=swap())
            case ast.AugAssign(op=op) if type(op) in SWAPPED:
                for swap in SWAPPED[type(op)]:
                    yield "operator swapped", *self._span(node), _changed(node, op=swap())
            case ast.UnaryOp(op=ast.Not()):
                yield "not removed", *self._span(node), f"({_text(node.operand)})"
            case ast.Constant(value=bool()):
                yield "constant changed", *self._span(node), repr(not node.value)
            case ast.Constant(value=int() | float() as value):
                yield "constant changed", *self._span(node), repr(value + 1)
                yield "constant changed", *self._span(node), repr(value - 1)
            case ast.Return(value=ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not())):
                yield "return changed", *self._span(node), "return True"
                yield "return changed", *self._span(node), "return False"
            case ast.Return(value=ast.AST() as value) if not isinstance(value, ast.Constant):
                yield "return changed", *self._span(node), "return None"
            case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete():
                yield "statement deleted", *self._span(node), "pass"
            case ast.Break():
                yield "break swapped", *self._span(node), "continue"
            case ast.Continue():
                yield "continue swapped", *self._span(node), "break"
            case ast.Call(keywords=[_, *_]):
                for index in range(len(node.keywords)):
                    kept = node.keywords[:index] + node.keywords[index + 1 :]
                    yield "keyword dropped", *self._span(node), _changed(node, keywords=kept)
            case ast.arguments():
                for default in filter(None, [*node.defaults, *node.kw_defaults]):
                    if not isinstance(default, ast.Constant):
                        yield "default changed", *self._span(default), "None"
            case ast.With(items=[ast.withitem(optional_vars=None) as item]):
                if not isinstance(item.context_expr, ast.Call):
                    yield "lock removed", *self._header(node, item), "if True:"
                elif _text(item.context_expr.func).endswith("suppress"):
                    yield "suppress removed", *self._header(node, item), "if True:"
            case ast.ExceptHandler(body=[first, *_]) if _text(first) != "raise":
                yield "except removed", *self._span(first, node.body[-1]), "raise"
            case ast.Try(finalbody=[first, *_]):
                yield "finally removed", *self._span(first, node.finalbody[-1]), "pass"
        match node:
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                if not isinstance(test, ast.Compare | ast.UnaryOp | ast.Constant):
                    yield "condition negated", *self._span(test), f"not ({_text(test)})"

    def _header(self, node: ast.With, item: ast.withitem) -> tuple[int, int]:
        end = self.data.index(b":", self._span(item.context_expr)[1]) + 1
        return self._span(node)[0], end


def _text(node: ast.AST) -> str:
    return ast.unparse(node)


def _changed(node: ast.AST, **fields: Any) -> str:
    return ast.unparse(type(node)(**(dict(ast.iter_fields(node)) | fields)))


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float)


def _is_limit(node: ast.Assign) -> bool:
    """Say whether a constant is a number, or a sum or product of some."""
    parts = list(ast.walk(node.value))
    return all(isinstance(part, ast.BinOp | ast.operator) or _is_number(part) for part in parts)
