"""Templates and generators of kerchunk's version 1, against what Jinja makes of the same text."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelite.errors import ErrorKind, InvalidInputError
from icelite.kerchunk.reading import Allowance, Template, generate, read_templates

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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{% if i > 5 %}many{% endif %}", "a statement, If"),
        ("{% for a in range(99999) %}{% endfor %}", "a statement, For"),
        ("{% set a = 1 %}{{ a }}", "a statement, Assign"),
        ("{{ name|lower }}", "a Filter"),
        ("{{ 'a'|center(3000000000) }}", "a Filter"),
        ("{{ i if i > 5 else 0 }}", "a CondExpr"),
        ("{{ i ** i }}", "a Pow"),
        ("{{ i ~ i }}", "a Concat"),
        ("{{ [i] }}", "a List"),
        ("{{ name[0] }}", "a Getitem"),
        ("{{ name.__class__.__mro__ }}", "a Getattr"),
        ("{{ name.format(i) }}", "calls something else"),
        ("{{ f(1) }}", "calls something else"),
        ("{{ f(**i) }}", "calls something else"),
        ("{{ i + true }}", "the constant True"),
        ("{{ " + "(" * 3000 + "i" + ")" * 3000 + " }}", "cannot be read"),
        ("{{ " + "-" * 300 + "i }}", "nested too deeply"),
        ("{{ " + "+".join(["i"] * 300) + " }}", "nested too deeply"),
        ("{{ " + "9" * 5000 + " }}", "cannot be read"),
        ("{{ u", "cannot be read"),
        ("{{ }}", "cannot be read"),
    ],
)
def test_the_rest_of_jinja_is_refused(text: str, told: str) -> None:
    message = refusal(render, text)
    assert told in message
    assert len(message) < 1_000


def test_templates_need_jinja_only_for_more_than_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert render("http://{{u}}/{{ name }}.nc") == "http://server.domain/path/Jan.nc"
    with pytest.raises(InvalidInputError, match=r"icelite\[kerchunk\]") as caught:
        render("{{ i + 1 }}")
    assert caught.value.kind == ErrorKind.MISSING_PACKAGE


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
        ("{{ 'a' % i }}", "has no value"),
        ("{{ 9223372036854775807 * i }}", "too large"),
        ("{{ 1e308 * i }}", "too large"),
        ("{{ 1e308 * 10 - 1e308 * 10 }}", "too large"),
        ("{{ '%999999999d' % i }}", "no format"),
        ("{{ i(c=1) }}", "takes no parameters"),
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
    assert dict(generate(content, NAMES, "x.json", Allowance())) == {
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
        ({"dimensions": {"i": {"start": 0}}}, "a list of texts and numbers or {start, stop, step}"),
        ({"dimensions": {"i": {"stop": 2, "step": 0}}}, "expected a list"),
        ({"dimensions": {"i": {"stop": 10**5}, "j": {"stop": 10**5}}}, "pass max_generated=10000000000"),
        ({"dimensions": {"i": {"stop": 49_999_999}}}, "pass max_generated=49999999"),
        ({"dimensions": {"i": {"start": 2**100, "stop": -(2**100), "step": -1}}}, "pass max_generated="),
        ({"dimensions": {f"i{n}": {"stop": 1} for n in range(65)}}, "65 dimensions"),
        ({"dimensions": {"i": [None]}}, "a list of texts and numbers"),
        ({"dimensions": {"i": [True]}}, "a list of texts and numbers"),
        ({"dimensions": {"i": [["a"]]}}, "a list of texts and numbers"),
        ({"dimensions": {"i": {"stop": True}}}, "expected a list"),
        ({"offset": 2**64}, "not text"),
        ({"url": "{{v}}"}, "'v', which stands for nothing"),
        ({"url": 3}, "not text"),
    ],
)
def test_bad_generators_are_refused(change: dict[str, Any], told: str) -> None:
    assert told in refusal(lambda: list(generate([{**GENERATOR, **change}], NAMES, "x.json", Allowance())))
    assert list(generate([GENERATOR], NAMES, "x.json", Allowance())) == [("x/0", ["u", 0, 1]), ("x/1", ["u", 0, 1])]


def test_the_limit_on_generators_holds_for_all_together_and_can_be_raised() -> None:
    def made(limit: int) -> int:
        return len(list(generate([GENERATOR] * 3, NAMES, "x.json", Allowance(), limit)))

    assert made(6) == 6
    assert "pass max_generated=6" in refusal(made, 5)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-9, 9).filter(bool))
def test_generators_are_counted_before_they_run(start: int, stop: int, step: int) -> None:
    content = [{**GENERATOR, "dimensions": {"i": {"start": start, "stop": stop, "step": step}}}]
    count = len(range(start, stop, step))
    assert len(list(generate(content, NAMES, "x.json", Allowance(), count))) == count
    if count:
        refusal(lambda: list(generate(content, NAMES, "x.json", Allowance(), count - 1)))


def doubling(levels: int) -> tuple[dict[str, Any], str]:
    """Templates that stand for 8 to the power of ``levels`` times 16 characters."""
    expression = "'xxxxxxxxxxxxxxxx'"
    for _ in range(levels):
        expression = f"t(a={expression})"
    return {"t": "{{a}}" * 8}, "{{" + expression + "}}"


def test_text_that_grows_and_templates_that_call_themselves_are_refused() -> None:
    templates, text = doubling(2)
    names = read_templates(templates, "x.json")
    assert Template(text, "x.json").render(names) == "x" * 16 * 64
    for levels in (4, 9, 15):
        assert "characters" in refusal(Template(doubling(levels)[1], "x.json").render, names)
    itself = read_templates({"t": "{{a(a=a)}}"}, "x.json")
    assert "more than 8 times" in refusal(Template("{{t(a=t)}}", "x.json").render, itself)


def test_work_that_the_size_of_the_file_does_not_explain_is_refused() -> None:
    names = {
        "t": Template("{{ 'a' + a(b=1) }}" * 40, "x.json"),
        "u": Template("{{ b * 1 - 1 }}" * 100, "x.json"),
    }
    allowance = Allowance()
    template = Template("{{ t(a=u) }}", "x.json")
    assert "more work than its size explains" in refusal(
        lambda: [template.render(names, allowance) for _ in range(200)]  # 16,000 operations each
    )


def test_many_small_texts_are_allowed() -> None:
    names = read_templates({"u": "server/path", "day": "{{ y }}-{{ '%02d' % m }}"}, "x.json")
    allowance = Allowance()
    template = Template("http://{{u}}/{{ day(y=2024, m=8) }}/{{ u + '-' + u }}.nc", "x.json")
    assert len({template.render(names, allowance) for _ in range(20_000)}) == 1
