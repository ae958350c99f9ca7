"""The reasons that the controllers can write into conditions and Events, read from their source.

Every call that writes one is found, and the expression in the reason's place is followed to its literals: through
variables, parameters (to the calls of their function), tuples, loops and constants of other modules. An expression that
cannot be followed is an error, so that no reason escapes.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kaito_hooks.api import claim
from kaito_hooks.provisioner import errors

HOOKS = Path(__file__).parents[3] / "hooks"
CLAIM_KINDS = frozenset({"Machine", "NodeClaim"})
Function = ast.FunctionDef


@dataclass(frozen=True)
class Writer:
    """A call that writes a reason: in its parameter of that name, or at that place."""

    name: str
    place: int
    below: str = ""
    """The packages whose modules mean it by that name."""


WRITERS = (
    Writer("Verdict", 2, "kaito_hooks.workspace"),
    Writer("Note", 1, "kaito_hooks.workspace"),
    Writer("Outcome", 1, "kaito_hooks.provisioner"),
    Writer("event", 2),
    Writer("set_condition", 99),
)
KNOWN = {
    # A NodeClaim's step that is done has its type as its reason; a Machine's has none.
    "self.encoding.step_conditions[step]": frozenset(claim.NODE_CLAIM.step_conditions.values()),
}


def refusals() -> frozenset[str]:
    """The reasons of the cloud's errors, which are the names of their classes."""

    def below(cls: type[errors.CloudError]) -> Iterator[type[errors.CloudError]]:
        for found in cls.__subclasses__():
            yield found
            yield from below(found)

    return frozenset(cls("code", "text").reason for cls in below(errors.CloudError))


def written() -> dict[str, set[str]]:
    """Reason -> the places in the source that write it."""
    found: dict[str, set[str]] = {reason: {"kaito_hooks/provisioner/errors.py"} for reason in refusals()}
    source = Source()
    for module in source.modules.values():
        for call in module.calls:
            expression = _reason_of(call, module)
            if expression is None:
                continue
            place = f"{module.file}:{call.lineno}"
            for reason in source.values(expression, module, call, place):
                found.setdefault(reason, set()).add(place)
    found.pop("", None)
    return found


def _reason_of(call: ast.Call, module: Module) -> ast.expr | None:
    name = _name_of(call.func)
    for writer in WRITERS:
        if name == writer.name and module.name.startswith(writer.below):
            return _argument(call, "reason", writer.place)
    return None


@dataclass
class Module:
    """A parsed module, with what each node is in."""

    name: str
    file: str
    tree: ast.Module
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in ast.walk(self.tree):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node

    @cached_property
    def calls(self) -> list[ast.Call]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]

    def function(self, node: ast.AST) -> Function | None:
        """The function that the node is in."""
        while not isinstance(node, Function | ast.Module):
            node = self.parents[node]
        return node if isinstance(node, Function) else None


class Source:
    """All modules of the controllers."""

    def __init__(self) -> None:
        self.modules = {}
        for path in sorted(HOOKS.rglob("*.py")):
            file = str(path.relative_to(HOOKS))
            name = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            self.modules[name] = Module(name, file, ast.parse(path.read_text()))

    def values(self, expression: ast.expr, module: Module, at: ast.AST, place: str) -> frozenset[str]:
        """The strings that the expression may be. Empty of what another writer has written and is only carried on."""
        match expression:
            case ast.Constant(value=str() as text):
                return frozenset({text})
            case ast.IfExp():
                return self._all((expression.body, expression.orelse), module, at, place)
            case ast.Tuple(elts=elements):
                return self._all(elements, module, at, place)
            case ast.JoinedStr():
                return self._joined(expression, module, at, place)
            case _ if ast.unparse(expression) in KNOWN:
                return KNOWN[ast.unparse(expression)]
            case ast.Attribute(attr="reason") | ast.Call(func=ast.Attribute(attr="get")):
                return frozenset()
            case ast.Attribute(attr="kind"):
                return CLAIM_KINDS
            case ast.Attribute(value=ast.Name(id=owner)) | ast.Subscript(value=ast.Name(id=owner)):
                return _constant(module, owner, expression, place)
            case ast.Name():
                return self._named(expression, module, at, place)
        raise AssertionError(f"{place}: the reason {ast.unparse(expression)} is not followed: teach tests/unit/docs")

    def _all(self, expressions: Iterable[ast.expr], module: Module, at: ast.AST, place: str) -> frozenset[str]:
        return frozenset().union(*(self.values(found, module, at, place) for found in expressions))

    def _joined(self, text: ast.JoinedStr, module: Module, at: ast.AST, place: str) -> frozenset[str]:
        found = {""}
        for part in text.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            found = {before + after for before in found for after in self.values(inner, module, at, place)}
        return frozenset(found)

    def _named(self, name: ast.Name, module: Module, at: ast.AST, place: str) -> frozenset[str]:
        function = module.function(at)
        assigned = [] if function is None else list(_assigned(function, name.id))
        if assigned:
            return self._all(assigned, module, at, place)
        if function is not None and (position := _position(function, name.id)) is not None:
            return self._given(function, name.id, position, module, place)
        if hasattr(importlib.import_module(module.name), name.id):
            return _constant(module, name.id, name, place)
        if name.id == "kind":
            return CLAIM_KINDS
        raise AssertionError(f"{place}: nobody says what {name.id} is: teach tests/unit/docs")

    def _given(self, function: Function, name: str, position: int, module: Module, place: str) -> frozenset[str]:
        """What callers give for a parameter, and its default."""
        found: frozenset[str] = frozenset()
        if (default := _default(function, name)) is not None:
            found |= self.values(default, module, function, place)
        where = [module] if function.name.startswith("_") else self.modules.values()
        for other in where:
            for call in other.calls:
                if _name_of(call.func) == function.name and (given := _argument(call, name, position)) is not None:
                    found |= self.values(given, other, call, f"{other.file}:{call.lineno}")
        return found


def _constant(module: Module, owner: str, expression: ast.expr, place: str) -> frozenset[str]:
    """A constant of the module or of one that it imports; of a mapping, all its values."""
    value = getattr(importlib.import_module(module.name), owner)
    if isinstance(expression, ast.Attribute):
        value = getattr(value, expression.attr)
    values = value.values() if hasattr(value, "values") else (value,)
    assert all(isinstance(text, str) for text in values), f"{place}: {ast.unparse(expression)} is no reason"
    return frozenset(values)


def _assigned(function: Function, name: str) -> Iterator[ast.expr]:
    """What the function assigns to a variable, alone or in a tuple, in a loop over tuples too."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[target], value=value):
                yield from _bound(target, value, name)
            case ast.For(target=target, iter=ast.Name(id=rows)):
                for row in _rows(function, rows):
                    yield from _bound(target, row, name)


def _bound(target: ast.expr, value: ast.expr, name: str) -> Iterator[ast.expr]:
    if isinstance(target, ast.Name) and target.id == name:
        yield value
    if not isinstance(target, ast.Tuple):
        return
    for index, element in enumerate(target.elts):
        if isinstance(element, ast.Name) and element.id == name:
            yield from _elements(value, index)


def _elements(value: ast.expr, index: int) -> Iterator[ast.expr]:
    match value:
        case ast.Tuple(elts=elements):
            yield elements[index]
        case ast.IfExp(body=body, orelse=other):
            yield from _elements(body, index)
            yield from _elements(other, index)
        case ast.Name():
            yield value  # a parameter: any of its elements


def _rows(function: Function, name: str) -> Iterator[ast.expr]:
    """The rows of a list that the function makes."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.List(elts=rows)) if found == name:
                yield from rows
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.List(elts=rows)) if found == name:
                yield from rows
            case ast.Call(func=ast.Attribute(value=ast.Name(id=found), attr="append"), args=[row]) if found == name:
                yield row


def _name_of(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _argument(call: ast.Call, name: str, position: int) -> ast.expr | None:
    named = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    if named is not None:
        return named
    return call.args[position] if position < len(call.args) else None


def _position(function: Function, name: str) -> int | None:
    """Where callers write the parameter; 99 of one that has only its name."""
    positional = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
    if name in positional:
        return positional.index(name)
    return 99 if name in [argument.arg for argument in function.args.kwonlyargs] else None


def _default(function: Function, name: str) -> ast.expr | None:
    of_names = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return next((default for argument, default in of_names if argument.arg == name), None)
