"""Small changes of Python code, one at a time: of a sign, an operator, a comparison or a constant.

Left alone is what says only how exactly or how randomly to compute, for a check must not owe its failure to it:
tolerances, numbers of decimals, seeds. So is a statement that names nothing of the page, such as ``1 + 1 == 2``:
it cannot be wrong about anything but arithmetic.
"""

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
SIGNS: dict[type[ast.operator], type[ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
ORDERS: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE}
EQUALITIES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
PRECISION = {"atol", "rtol", "abs_tol", "rel_tol", "decimals", "ndigits", "precision", "seed"}
"""Arguments by name that are left alone."""
SEEDS = {"manual_seed", "seed", "default_rng", "Random", "RandomState", "set_printoptions"}
"""Functions whose arguments are left alone."""


@dataclass(frozen=True)
class Change:
    """A piece of code with one thing changed."""

    line: int
    """Where it was changed, counted from 0."""
    kind: str
    old: str
    new: str
    source: str
    """All of the code, changed."""
    proves: bool = True
    """Whether a failure shows anything: to ask whether ``a != b`` instead of ``a == b`` turns every answer round."""


@dataclass(frozen=True)
class _Place:
    """Where a node hangs in its tree."""

    owner: ast.AST
    field: str
    index: int | None

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.owner, self.field, node)
        else:
            getattr(self.owner, self.field)[self.index] = node


def changes(source: str) -> Iterator[Change]:
    """Yield every change of a piece of code, in the order of the code."""
    tree = parsed(source)
    for place, node in list(_places(tree)):
        for kind, new, proves in _variants(node):
            place.put(new)
            try:
                text = ast.unparse(tree)
            except ValueError:  # Python 3.11 cannot write every f-string that it reads
                continue
            finally:
                place.put(node)
            yield Change(getattr(node, "lineno", 1) - 1, kind, ast.unparse(node), ast.unparse(new), text + "\n", proves)


def parsed(source: str) -> ast.Module:
    """Return the tree of a piece of code; an empty one where an example shows what Python refuses to read."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


def names_nothing(node: ast.AST) -> bool:
    """Whether a piece of code uses only literals and builtins."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} <= set(dir(builtins))


def _places(node: ast.AST) -> Iterator[tuple[_Place, ast.AST]]:
    """Yield the nodes below a node that may be changed."""
    for field, value in ast.iter_fields(node):
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _left_alone(node, field, index, child):
                yield _Place(node, field, index), child
                yield from _places(child)


def _left_alone(owner: ast.AST, field: str, index: int | None, child: ast.AST) -> bool:
    match owner:
        case ast.keyword(arg=name) if name in PRECISION:
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if field in {"args", "keywords"}:
            return name in SEEDS or (name == "round" and isinstance(owner.func, ast.Name) and bool(index))
        case ast.FormattedValue():
            return field == "format_spec"
    return isinstance(child, ast.Expr | ast.Assert) and names_nothing(child)


def _variants(node: ast.AST) -> Iterator[tuple[str, ast.expr | ast.stmt, bool]]:
    """Yield what may replace a node: the kind of change, the new node, and whether a failure proves anything."""
    match node:
        case ast.BinOp(left, op, right):
            if isinstance(op, ast.MatMult):  # "*" would mostly fail for the shapes alone
                yield "sign", ast.UnaryOp(ast.USub(), node), True
            if isinstance(op, ast.Add):  # what is invariant under shifts is not invariant under this
                yield "operator", ast.BinOp(left, ast.Mult(), right), True
            kind = "sign" if type(op) in SIGNS else "operator"
            yield kind, ast.BinOp(left, (SIGNS | OPERATORS)[type(op)](), right), True
        case ast.AugAssign(target, op, value):
            kind = "sign" if type(op) in SIGNS else "operator"
            yield kind, ast.AugAssign(target, (SIGNS | OPERATORS)[type(op)](), value), True
        case ast.BoolOp(op, values):
            yield "operator", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values), True
        case ast.UnaryOp(ast.USub() | ast.Invert(), operand):
            yield "sign", operand, True
        case ast.UnaryOp(ast.Not(), operand):
            yield "comparison", operand, False
        case ast.Compare(left, ops, comparators):
            for i, op in enumerate(ops):
                turned = [*ops[:i], (ORDERS | EQUALITIES)[type(op)](), *ops[i + 1 :]]
                yield "comparison", ast.Compare(left, turned, comparators), type(op) in ORDERS
        case ast.Constant(bool() as value):
            yield "constant", ast.Constant(not value), True
        case ast.Constant(int() | float() as value):
            for other in dict.fromkeys((value + 1, value * 2, type(value)(0))):
                if other != value:
                    yield "constant", ast.Constant(other), True
