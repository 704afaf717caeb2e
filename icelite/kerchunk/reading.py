"""From a dict, a JSON file or a parquet folder to a `ReferenceSet`; the only module that opens reference files.

Reference files are opened where the caller says, with fsspec; what they refer to is not opened.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import fsspec

from icelite.budget import MAX_GENERATED, MAX_LOCATION_CHARACTERS, unpacked_limit
from icelite.errors import (
    ErrorKind,
    IceliteError,
    InvalidInputError,
    check_open_files,
    client_errors,
    has_secret,
    shown,
)
from icelite.kerchunk.parquet import PARQUET_METADATA, read_parquet
from icelite.kerchunk.references import ReferenceSet, collect_references, malformed

References: TypeAlias = Mapping[str, Any] | str | os.PathLike[str]
Names: TypeAlias = Mapping[str, Any]  # text, a number, or a `Template` to be called

MAX_CHARACTERS = MAX_LOCATION_CHARACTERS  # of a template, and of a text that one stands for
MAX_CALLS = 8  # of templates inside each other
MAX_DEPTH = 32  # of operations inside each other
MAX_VARIABLES = 64  # of one generator
_SIMPLE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_EXPRESSION = re.compile(r"\{(?:[{%#]|$)")
_PLACEHOLDER = re.compile(r"%(?:0?[0-9]{1,2})?[dis]")
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.truediv,
    "FloorDiv": operator.floordiv,
    "Mod": operator.mod,
}
_LARGEST = 1 << 63


@dataclass(frozen=True, slots=True)
class ReferenceFile:
    """A set of references with what its surroundings say.

    Attributes
    ----------
    root
        The folder (an absolute path or URL) that relative paths in it are relative to; None when there is none.
    own
        Whether the caller made the references in this process, so that the local files they name are its own.
    """

    references: ReferenceSet
    root: str | None
    own: bool


def read_references(
    references: References,
    root: str | os.PathLike[str] | None,
    storage_options: Mapping[str, Any] | None,
    max_generated: int,
) -> ReferenceFile:
    """Read and check references; nothing that they refer to is looked at.

    Parameters
    ----------
    max_generated
        References that generators may stand for.

    Raises
    ------
    InvalidInputError
        ``invalid-references``, ``bad-metadata``, ``invalid-path`` for what the references say;
        ``invalid-argument`` where there are none.
    """
    if type(max_generated) is not int or max_generated < 0:
        raise InvalidInputError(
            f"max_generated={shown(max_generated)} must be a number of references", ErrorKind.INVALID_ARGUMENT
        )
    folder = None if root is None else _absolute(os.fspath(root))
    if isinstance(references, Mapping):
        return ReferenceFile(_parse(references, "the references", max_generated), folder, own=True)
    if not isinstance(references, str | os.PathLike):
        raise InvalidInputError(
            f"references are a dict, a JSON file or a parquet folder, not {type(references).__name__}",
            ErrorKind.INVALID_ARGUMENT,
        )
    url = _absolute(os.fspath(references))
    if url.startswith(("http://", "https://")) and "@" in url.split("/")[2]:
        raise InvalidInputError(
            f"reference file {url!r} has a user or password in its URL: pass them in storage_options,"
            " as fsspec's file system of web servers takes them",
            ErrorKind.INVALID_ARGUMENT,
        )
    found = _read(url, storage_options or {}, max_generated)
    return ReferenceFile(found, folder or url.rpartition("/")[0] or "/", own=False)


def _absolute(url: str) -> str:
    if "://" in url:
        return url.rstrip("/") if not url.startswith("file:///") else url.removeprefix("file://")
    return os.path.abspath(os.path.expanduser(url))


def _read(url: str, storage_options: Mapping[str, Any], max_generated: int) -> ReferenceSet:
    origin = repr(url)
    try:
        fs, path = fsspec.core.url_to_fs(url, **storage_options)
        if fs.exists(f"{path}/{PARQUET_METADATA}"):
            return read_parquet(fs, path, origin)
        if fs.isdir(path):
            raise malformed(origin, f"is a folder without {PARQUET_METADATA}, so it holds no references in parquet")
        data = _unpacked(fs.cat_file(path), path, origin)
    except IceliteError:
        raise
    except client_errors(ValueError, ImportError) as error:  # the last two are fsspec's
        failure = _failure(error, origin)
        cause = None if has_secret(url) else error
    else:
        return _parse(_json(data, origin), origin, max_generated)
    raise failure from cause  # out here, an exception that tells the URL is not the context of this one


def _failure(error: Exception, origin: str) -> InvalidInputError:
    if isinstance(error, FileNotFoundError):
        return InvalidInputError(f"there is no reference file {origin}", ErrorKind.INVALID_ARGUMENT)
    return malformed(origin, f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _json(data: bytes, origin: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # also of a number with too many digits
        raise malformed(origin, f"is not JSON: {error}") from error


def _unpacked(data: bytes, path: str, origin: str) -> bytes:
    """The content of a file, unpacked if its name says that it is compressed."""
    compression = fsspec.utils.infer_compression(path)
    if compression is None:
        return data
    limit = unpacked_limit(len(data))
    with fsspec.compression.compr[compression](io.BytesIO(data), mode="rb") as stream:
        unpacked: bytes = stream.read(limit + 1)
    if len(unpacked) > limit:
        raise malformed(
            origin,
            f"has {len(data)} bytes and unpacks to more than {limit}, as if it was made to fill memory; unpack it"
            " yourself if you trust it, and pass that file",
        )
    return unpacked


def _parse(content: Any, origin: str, max_generated: int) -> ReferenceSet:
    if not isinstance(content, Mapping):
        raise malformed(origin, f"holds a JSON {type(content).__name__}; expected an object of references")
    if "version" not in content:
        if isinstance(content.get("refs"), Mapping):
            raise malformed(origin, "has 'refs' but no 'version'; write \"version\": 1 beside it")
        return collect_references(content, origin, str)
    if type(content["version"]) is not int or content["version"] not in (0, 1):
        raise malformed(origin, f"has version {shown(content['version'])}; icelite reads versions 0 and 1")
    references = content.get("refs", {})
    if not isinstance(references, Mapping):
        raise malformed(origin, f"has 'refs' that are a {type(references).__name__}, not an object")
    templates = read_templates(content.get("templates") or {}, origin)
    allowance = Allowance()
    generated = dict(generate(content.get("gen") or [], templates, origin, allowance, max_generated))

    def expand(url: str) -> str:
        return Template(url, origin).render(templates, allowance)

    return collect_references({**references, **generated}, origin, expand)


# -- templates and generators of version 1: ``{{...}}`` in text, replaced by what it stands for ------------------------
# Jinja only parses here, and what kerchunk's specification needs is evaluated: names, numbers, text, arithmetic, and
# calls of the file's own templates; within an `Allowance`.


class Allowance:
    """The cost that evaluating the templates of one file may have; it grows with the texts that the file asks for."""

    def __init__(self) -> None:
        self._steps = 1_000_000
        self._characters = 16 << 20

    def begin(self) -> None:
        """Count one more text that a template is asked for."""
        self._steps += 64
        self._characters += 512

    def step(self) -> None:
        """Count an operation; raises `ValueError` for one too many."""
        self._steps -= 1
        if self._steps < 0:
            raise ValueError("the templates of the file ask for more work than its size explains")

    def produce(self, text: str) -> str:
        """Count a text, and return it; raises `ValueError` for one too long, or too much of it."""
        self._characters -= len(text)
        if len(text) > MAX_CHARACTERS or self._characters < 0:
            raise ValueError(f"it stands for text of more than {MAX_CHARACTERS} characters, or of too many in all")
        return text


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
        ``invalid-references`` for a template that is no Jinja, or more of it than is evaluated; ``missing-package``.
    """

    def __init__(self, text: str, origin: str) -> None:
        self._where = f"{origin}: template {shown(text)}"
        if len(text) > MAX_CHARACTERS:
            raise malformed(self._where, f"has {len(text)} characters; at most {MAX_CHARACTERS} are read")
        self._parts: list[str] = _SIMPLE.split(text)
        self._body: list[Any] | None = None
        if any(map(_EXPRESSION.search, self._parts[::2])):
            self._body = _parsed(text, self._where)

    def render(self, names: Names, allowance: Allowance | None = None, calls: int = 0) -> str:
        """The text with every expression replaced.

        Raises
        ------
        InvalidInputError
            ``invalid-references`` for a name that stands for nothing, an expression without a value, or one that
            costs more than the allowance.
        """
        allowance = allowance or Allowance()
        if not calls:
            allowance.begin()
        try:
            if self._body is None:
                parts = [_text(names[p]) if i % 2 else p for i, p in enumerate(self._parts)]
            else:
                parts = [_text(_value(node, names, allowance, calls)) for node in self._body]
            return allowance.produce("".join(parts))
        except KeyError as error:
            known = ", ".join(map(repr, itertools.islice(names, 10))) or "none"
            problem = f"uses {error.args[0]!r}, which stands for nothing here; known are: {known}"
            raise malformed(self._where, problem) from None
        except (ArithmeticError, TypeError, ValueError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise malformed(self._where, f"has no value: {error}") from error


def _parsed(text: str, where: str) -> list[Any]:
    """The pieces of a template as Jinja's syntax tree; nothing of it has run."""
    try:
        jinja2 = importlib.import_module("jinja2")
    except (ImportError, OSError) as error:
        check_open_files(f"jinja2 cannot be loaded for {where}")
        raise InvalidInputError(
            f"{where} needs the package jinja2: pip install 'icelite[kerchunk]'", ErrorKind.MISSING_PACKAGE
        ) from error
    try:
        body = jinja2.Environment(keep_trailing_newline=True).parse(text).body
        pieces = [piece for output in body for piece in _pieces(output)]
        for piece in pieces:
            _check(piece, 0)
    except (jinja2.TemplateError, ValueError, RecursionError) as error:
        raise malformed(
            where,
            f"cannot be read: {error or 'it is nested too deeply'}; names, numbers, text, arithmetic and calls of the"
            " file's own templates are evaluated, anything else has to be written out",
        ) from error
    return pieces


def _pieces(output: Any) -> list[Any]:
    if type(output).__name__ != "Output":
        raise ValueError(f"it has a statement, {type(output).__name__}")
    return list(output.nodes)


def _check(node: Any, depth: int) -> None:
    """Refuse with `ValueError` what is not evaluated."""
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    kind = type(node).__name__
    if kind == "Const" and type(node.value) not in (str, int, float):
        raise ValueError(f"it has the constant {node.value!r}")
    if kind == "Call":
        extra = node.args or node.dyn_args or node.dyn_kwargs
        if type(node.node).__name__ != "Name" or extra:
            raise ValueError("it calls something else than a template with named parameters")
    elif kind not in ("TemplateData", "Const", "Name", "Neg", "Keyword", *_ARITHMETIC):
        raise ValueError(f"it has a {kind}")
    for child in node.iter_child_nodes():
        _check(child, depth + 1)


def _value(node: Any, names: Names, allowance: Allowance, calls: int) -> Any:
    allowance.step()
    kind = type(node).__name__
    if kind == "TemplateData":
        return node.data
    if kind == "Const":
        return node.value
    if kind == "Name":
        return names[node.name]
    if kind == "Neg":
        return -_number(_value(node.node, names, allowance, calls))
    if kind == "Call":
        given = {pair.key: _value(pair.value, names, allowance, calls) for pair in node.kwargs}
        return _call(node.node.name, names, given, allowance, calls)
    left = _value(node.left, names, allowance, calls)
    return _operate(kind, left, _value(node.right, names, allowance, calls), allowance)


def _call(name: str, names: Names, given: Names, allowance: Allowance, calls: int) -> str:
    template = names[name]
    if not isinstance(template, Template):
        raise TypeError(f"{name!r} takes no parameters")
    if calls >= MAX_CALLS:
        raise ValueError(f"templates call each other more than {MAX_CALLS} times")
    return template.render(given, allowance, calls + 1)


def _operate(kind: str, left: Any, right: Any, allowance: Allowance) -> Any:
    if isinstance(left, str) and kind == "Mod" and type(right) in (str, int, float):
        if "%" in _PLACEHOLDER.sub("", left):  # a width of nine digits would be a text of a gigabyte
            raise ValueError(f"{shown(left)} is no format such as '%03d'")
        return allowance.produce(left % right)
    if isinstance(left, str) and isinstance(right, str) and kind == "Add":
        return allowance.produce(left + right)
    return _number(_ARITHMETIC[kind](_number(left), _number(right)))


def _number(value: Any) -> int | float:
    if type(value) not in (int, float):
        raise TypeError("text goes with text and '+' only, a template with parameters only")
    if not -_LARGEST < value < _LARGEST:  # nor NaN
        raise ValueError("its numbers are too large")
    number: int | float = value
    return number


def _text(value: Any) -> str:
    if isinstance(value, Template):
        raise TypeError("it names a template that takes parameters, such as {{f(c='text')}}")
    return str(value)


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


def generate(
    content: Any, templates: Names, origin: str, allowance: Allowance, limit: int = MAX_GENERATED
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the key and reference of everything that the ``gen`` of a file stands for.

    Raises
    ------
    InvalidInputError
        ``invalid-references``; for more than ``limit`` references before the first one is made.
    """
    if not isinstance(content, list):
        raise malformed(origin, f"has a 'gen' that is a {type(content).__name__}, not a list")
    generators = []
    total = 0
    for number, entry in enumerate(content):
        where = f"{origin}, generator {number},"
        fields, (dimensions, count) = _fields(entry, where), _dimensions(entry, where)
        total += count
        if total > limit:
            raise malformed(
                where,
                f"and those before it stand for {total} references, and at most {limit} are made;"
                f" pass max_generated={total} if you trust them",
            )
        generators.append((where, fields, dimensions))
    for where, fields, dimensions in generators:
        names = dict(templates)
        for values in itertools.product(*dimensions.values()):
            names.update(zip(dimensions, values, strict=True))
            rendered = {field: template.render(names, allowance) for field, template in fields.items()}
            yield rendered["key"], _reference(rendered, where)


def _fields(entry: Any, where: str) -> dict[str, Template]:
    if not isinstance(entry, dict):
        raise malformed(where, f"is a {type(entry).__name__}, not an object")
    found = {name: entry[name] for name in ("key", "url", "offset", "length") if entry.get(name) is not None}
    if not {"key", "url"} <= found.keys() or ("offset" in found) != ("length" in found):
        raise malformed(where, f"has {sorted(found)}; expected 'key' and 'url', and 'offset' and 'length' or neither")
    numbers = [name for name in ("offset", "length") if type(found.get(name)) is int and abs(found[name]) < _LARGEST]
    found.update({name: str(found[name]) for name in numbers})
    if not all(isinstance(text, str) for text in found.values()):
        raise malformed(where, "has a field that is not text")
    return {name: Template(text, where) for name, text in found.items()}


def _dimensions(entry: Mapping[str, Any], where: str) -> tuple[dict[str, Sequence[Any]], int]:
    """The values that each variable of a generator takes, and how many combinations there are."""
    dimensions = entry.get("dimensions")
    if not isinstance(dimensions, dict) or not dimensions:
        raise malformed(where, "has no 'dimensions'")
    if len(dimensions) > MAX_VARIABLES:
        raise malformed(where, f"has {len(dimensions)} dimensions; at most {MAX_VARIABLES} are read")
    values = {name: _values(name, values, where) for name, values in dimensions.items()}
    return values, math.prod(map(_count, values.values()))


def _values(name: str, values: Any, where: str) -> Sequence[Any]:
    if isinstance(values, list) and set(map(type, values)) <= {str, int, float}:
        return values
    if isinstance(values, dict) and "stop" in values and values.keys() <= {"start", "stop", "step"}:
        bounds = values.get("start", 0), values["stop"], values.get("step", 1)
        if all(type(bound) is int for bound in bounds) and bounds[2] != 0:
            return range(*bounds)
    raise malformed(
        where,
        f"has the dimension {shown(name)} = {shown(values)}; expected a list of texts and numbers or"
        " {start, stop, step}",
    )


def _count(values: Sequence[Any]) -> int:
    """The number of values, also where that is more than ``len`` can say."""
    if isinstance(values, range):
        return max(0, -((values.start - values.stop) // values.step))
    return len(values)


def _reference(rendered: Mapping[str, str], where: str) -> list[Any]:
    if "offset" not in rendered:
        return [rendered["url"]]
    try:
        return [rendered["url"], int(rendered["offset"]), int(rendered["length"])]
    except ValueError as error:
        extent = f"offset {rendered['offset']!r} and length {rendered['length']!r}"
        raise malformed(where, f"gives {rendered['key']!r} the {extent}, which are not whole numbers") from error
