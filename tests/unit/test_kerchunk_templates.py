"""Templates and generators of kerchunk's version 1, against what Jinja makes of the same text."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelite.errors import ErrorKind, InvalidInputError
from icelite.kerchunk.templates import Template, generate, read_templates

NAMES: dict[str, Any] = {"u": "server.domain/path", "i": 7, "name": "Jan"}


def render(text: str, **names: Any) -> str:
    return Template(text, "x.json").render({**NAMES, **names})


def refusal(act: Any, *arguments: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        act(*arguments)
    assert caught.value.kind == ErrorKind.INVALID_REFERENCES
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain {text}", "plain {text}"),
        ("http://{{u}}", "http://server.domain/path"),
        ("{{ u }}/{{name}}.nc", "server.domain/path/Jan.nc"),
        ("{{(i + 1) * 1000}}", "8000"),
        ("{{ -i }}{{ i - 1 }}{{ i // 2 }}{{ i % 4 }}", "-7633"),
        ("{{ '%03d' % i }}", "007"),
        ("{{ u + '/' + name }}", "server.domain/path/Jan"),
        ("{{ i / 2 }}", "3.5"),
    ],
)
def test_expressions(text: str, expected: str) -> None:
    assert render(text) == expected


def test_templates_with_parameters_are_called() -> None:
    templates = read_templates({"u": "server/path", "f": "{{c}}", "day": "{{ y }}-{{ '%02d' % m }}"}, "x.json")
    assert Template("http://{{f(c='text')}}", "x.json").render(templates) == "http://text"
    assert Template("{{u}}/{{ day(y=2024, m=8) }}.nc", "x.json").render(templates) == "server/path/2024-08.nc"


@pytest.mark.parametrize("text", ["{% if i > 5 %}many{% endif %}", "{{ name|lower }}", "{{ i if i > 5 else 0 }}"])
def test_the_rest_of_jinja_is_left_to_jinja(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jinja2 = pytest.importorskip("jinja2")
    assert render(text) == jinja2.Template(text).render(NAMES)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "jinja2" in refusal(render, text)


@given(st.lists(st.one_of(st.sampled_from(["{{u}} ", " {{ i * 3 }} ", " {{name}} ", " {i} "]), st.text("abc/.: "))))
def test_jinja_agrees(parts: list[str]) -> None:
    jinja2 = pytest.importorskip("jinja2")
    text = "".join(parts)
    try:
        expected = jinja2.Template(text, keep_trailing_newline=True).render(NAMES)
    except jinja2.TemplateSyntaxError:
        refusal(render, text)
        return
    assert render(text) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{v}}", "'v', which stands for nothing here; known are: 'u', 'i', 'name'"),
        ("{{ i // 0 }}", "has no value"),
        ("{{ u * 1000000000 }}", "text goes with text"),
        ("{{ '%999999999d' % i }}", "no format"),
        ("{{ i(c=1) }}", "takes no parameters"),
        ("{{ name.__class__.__mro__ }}", "{{ name.__class__.__mro__ }}"),
        ("{{ }}", "{{ }}"),
    ],
)
def test_what_has_no_value_is_refused(text: str, told: str) -> None:
    message = refusal(render, text)
    assert told in message
    assert "x.json" in message


def test_a_template_with_parameters_that_is_not_called_is_refused() -> None:
    templates = read_templates({"f": "{{c}}"}, "x.json")
    assert "takes parameters" in refusal(Template("{{f}}", "x.json").render, templates)


def test_generators_count_their_last_dimension_fastest() -> None:
    content = [
        {
            "key": "x/{{i}}.{{j}}",
            "url": "http://{{u}}_{{month}}",
            "offset": "{{(i + 1) * 1000}}",
            "length": "1000",
            "dimensions": {"i": {"start": 2, "stop": 6, "step": 3}, "j": {"stop": 2}, "month": ["jan"]},
        },
        {"key": "y/{{n}}", "url": "{{n}}.nc", "dimensions": {"n": [1, 2]}},
    ]
    assert dict(generate(content, NAMES, "x.json")) == {
        "x/2.0": ["http://server.domain/path_jan", 3000, 1000],
        "x/2.1": ["http://server.domain/path_jan", 3000, 1000],
        "x/5.0": ["http://server.domain/path_jan", 6000, 1000],
        "x/5.1": ["http://server.domain/path_jan", 6000, 1000],
        "y/1": ["1.nc"],
        "y/2": ["2.nc"],
    }


GENERATOR = {"key": "x/{{i}}", "url": "u", "offset": "0", "length": "1", "dimensions": {"i": {"stop": 2}}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"key": None}, "expected 'key' and 'url'"),
        ({"length": None}, "'offset' and 'length' or neither"),
        ({"offset": "{{ i / 2 }}"}, "not whole numbers"),
        ({"dimensions": {}}, "no 'dimensions'"),
        ({"dimensions": {"i": {"start": 0}}}, "expected a list or {start, stop, step}"),
        ({"dimensions": {"i": {"stop": 2, "step": 0}}}, "expected a list"),
        ({"dimensions": {"i": {"stop": 10**5}, "j": {"stop": 10**5}}}, "more than"),
        ({"url": "{{v}}"}, "'v', which stands for nothing"),
        ({"url": 3}, "not text"),
    ],
)
def test_bad_generators_are_refused(change: dict[str, Any], told: str) -> None:
    assert told in refusal(lambda: list(generate([{**GENERATOR, **change}], NAMES, "x.json")))
    assert list(generate([GENERATOR], NAMES, "x.json")) == [("x/0", ["u", 0, 1]), ("x/1", ["u", 0, 1])]
