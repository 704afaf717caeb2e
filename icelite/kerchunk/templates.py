"""Templates and generators of kerchunk's version 1: ``{{...}}`` in text, replaced by what it stands for.

A reference file may come from a stranger, so expressions are evaluated here: names, numbers, text, arithmetic, and
calls of the file's own templates. Anything else of Jinja's language goes to Jinja's sandbox, where it is installed.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from icelite.kerchunk.faults import malformed

Names: TypeAlias = Mapping[str, Any]  # text, a number, or a `Template` to be called
Evaluate: TypeAlias = Callable[[Names], Any]

MAX_GENERATED = 50_000_000  # references that the generators of one file may stand for
_EXPRESSION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STATEMENT = re.compile(r"\{[%#]")
_PLACEHOLDER = re.compile(r"%(?:0?[0-9]{1,2})?[dis]")
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class _Beyond(Exception):
    """An expression of Jinja's that is not evaluated here."""


class Template:
    """Text with expressions in it.

    Parameters
    ----------
    text
        What the file says.
    origin
        The file, for messages.

    Raises
    ------
    InvalidInputError
        ``invalid-references`` for a template that cannot be read here, nor by Jinja when that is not installed.
    """

    def __init__(self, text: str, origin: str) -> None:
        self._text = text
        self._origin = origin
        self._parts: list[str | Evaluate] = []
        self._whole: Evaluate | None = None
        try:
            if _STATEMENT.search(text):
                raise _Beyond("a statement or comment")
            if "{{" in _EXPRESSION.sub("", text):
                raise malformed(f"{origin}: template {text!r}", "has a {{ that is not closed")
            for i, part in enumerate(_EXPRESSION.split(text)):
                self._parts.append(_compile(part) if i % 2 else part)
        except _Beyond as error:
            self._whole = _jinja(text, origin, str(error))

    def render(self, names: Names) -> str:
        """The text with every expression replaced.

        Raises
        ------
        InvalidInputError
            ``invalid-references`` for a name that stands for nothing, or an expression without a value.
        """
        if self._whole is None:
            try:
                return "".join(part if isinstance(part, str) else _text(part(names)) for part in self._parts)
            except KeyError as error:
                known = ", ".join(map(repr, names)) or "none"
                problem = f"uses {error.args[0]!r}, which stands for nothing here; known are: {known}"
                raise malformed(f"{self._origin}: template {self._text!r}", problem) from None
            except (ArithmeticError, TypeError, ValueError) as error:
                raise malformed(f"{self._origin}: template {self._text!r}", f"has no value: {error}") from error
        return str(self._whole(names))

    def __call__(self, **names: Any) -> str:
        """`render` with these names only, as an expression calls it."""
        return self.render(names)


def _text(value: Any) -> str:
    if isinstance(value, Template):
        raise TypeError("it names a template that takes parameters, such as {{f(c='text')}}")
    return str(value)


def _compile(expression: str) -> Evaluate:
    try:
        return _evaluator(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _Beyond(f"the expression {expression.strip()[:80]!r}") from error


def _evaluator(node: ast.expr) -> Evaluate:
    if isinstance(node, ast.Constant) and type(node.value) in (str, int, float):
        value = node.value
        return lambda names: value
    if isinstance(node, ast.Name):
        return operator.itemgetter(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _evaluator(node.operand)
        return lambda names: -operand(names)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _operation(type(node.op), _evaluator(node.left), _evaluator(node.right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        return _call(node.func.id, {str(pair.arg): _evaluator(pair.value) for pair in node.keywords})
    raise _Beyond(f"the expression {ast.unparse(node)[:80]!r}")


def _operation(kind: type[ast.operator], left: Evaluate, right: Evaluate) -> Evaluate:
    calculate = _ARITHMETIC[kind]

    def evaluate(names: Names) -> Any:
        one, other = left(names), right(names)
        if isinstance(one, str) and kind is ast.Mod:
            if "%" in _PLACEHOLDER.sub("", one):  # a width of nine digits would be a text of a gigabyte
                raise ValueError(f"{one!r} is no format such as '%03d'")
        elif {type(one), type(other)} - {int, float} and (type(one), type(other), kind) != (str, str, ast.Add):
            raise TypeError("text goes with text and '+' only")
        return calculate(one, other)

    return evaluate


def _call(name: str, arguments: Mapping[str, Evaluate]) -> Evaluate:
    def evaluate(names: Names) -> Any:
        template = names[name]
        if not isinstance(template, Template):
            raise TypeError(f"{name!r} takes no parameters")
        return template(**{key: value(names) for key, value in arguments.items()})

    return evaluate


def _jinja(text: str, origin: str, what: str) -> Evaluate:
    try:
        jinja2 = importlib.import_module("jinja2")
        sandbox = importlib.import_module("jinja2.sandbox")
    except ImportError as error:
        raise malformed(f"{origin}: template {text!r}", f"has {what}, which needs the package jinja2") from error
    try:
        compiled = sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(text)
    except jinja2.TemplateError as error:
        raise malformed(f"{origin}: template {text!r}", f"cannot be read: {error}") from error

    def render(names: Names) -> str:
        try:
            return str(compiled.render(**names))
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError) as error:
            raise malformed(f"{origin}: template {text!r}", f"has no value: {error}") from error

    return render


def read_templates(content: Any, origin: str) -> dict[str, Any]:
    """The ``templates`` of a file: text that stands for itself, and templates that take parameters.

    Raises
    ------
    InvalidInputError
        ``invalid-references``.
    """
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise malformed(origin, "has 'templates' that are not an object of names and texts")
    return {name: Template(text, origin) if "{{" in text else text for name, text in content.items()}


def generate(content: Any, templates: Names, origin: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield the key and reference of everything that the ``gen`` of a file stands for.

    Raises
    ------
    InvalidInputError
        ``invalid-references``.
    """
    if not isinstance(content, list):
        raise malformed(origin, f"has a 'gen' that is a {type(content).__name__}, not a list")
    for number, entry in enumerate(content):
        where = f"{origin}, generator {number},"
        fields, dimensions = _fields(entry, where), _dimensions(entry, where)
        if math.prod(map(len, dimensions.values())) > MAX_GENERATED:
            raise malformed(where, f"stands for more than {MAX_GENERATED} references")
        names = dict(templates)
        for values in itertools.product(*dimensions.values()):
            names.update(zip(dimensions, values, strict=True))
            rendered = {field: template.render(names) for field, template in fields.items()}
            yield rendered["key"], _reference(rendered, where)


def _fields(entry: Any, where: str) -> dict[str, Template]:
    if not isinstance(entry, dict):
        raise malformed(where, f"is a {type(entry).__name__}, not an object")
    found = {name: entry[name] for name in ("key", "url", "offset", "length") if entry.get(name) is not None}
    if not {"key", "url"} <= found.keys() or ("offset" in found) != ("length" in found):
        raise malformed(where, f"has {sorted(found)}; expected 'key' and 'url', and 'offset' and 'length' or neither")
    numbers = [name for name in ("offset", "length") if type(found.get(name)) is int]
    found.update({name: str(found[name]) for name in numbers})
    if not all(isinstance(text, str) for text in found.values()):
        raise malformed(where, "has a field that is not text")
    return {name: Template(text, where) for name, text in found.items()}


def _dimensions(entry: Mapping[str, Any], where: str) -> dict[str, Sequence[Any]]:
    dimensions = entry.get("dimensions")
    if not isinstance(dimensions, dict) or not dimensions:
        raise malformed(where, "has no 'dimensions'")
    return {name: _values(name, values, where) for name, values in dimensions.items()}


def _values(name: str, values: Any, where: str) -> Sequence[Any]:
    if isinstance(values, list):
        return values
    if isinstance(values, dict) and "stop" in values and values.keys() <= {"start", "stop", "step"}:
        bounds = values.get("start", 0), values["stop"], values.get("step", 1)
        if all(type(bound) is int for bound in bounds) and bounds[2] != 0:
            return range(*bounds)
    raise malformed(where, f"has the dimension {name!r} = {values!r}; expected a list or {{start, stop, step}}")


def _reference(rendered: Mapping[str, str], where: str) -> list[Any]:
    if "offset" not in rendered:
        return [rendered["url"]]
    try:
        return [rendered["url"], int(rendered["offset"]), int(rendered["length"])]
    except ValueError as error:
        extent = f"offset {rendered['offset']!r} and length {rendered['length']!r}"
        raise malformed(where, f"gives {rendered['key']!r} the {extent}, which are not whole numbers") from error
