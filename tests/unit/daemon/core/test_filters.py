"""The filter language: BEHAVIOUR by example, and properties over generated text."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.containers import Container, fields
from pyctrd.core.filters import Adaptor, compile_filters

LABELS = {
    "foo": "bar",
    "containerd.io/x": "1",
    "a.b": "c=d:e",
    "empty-looking": " ",
    "greek": "ς",
    "digit": "٣",
    "line": "one\n",
    "backspace": "\b",
}
OBJECT = fields(Container("web-1", labels=LABELS, image="docker.io/library/nginx:1", runtime_name="runc"))


def matches(*texts: str) -> bool:
    return compile_filters(texts)(OBJECT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id",
        "id==web-1",
        " id == web-1 ",
        "id!=web-2",
        "id~=^web",
        "image==docker.io/library/nginx:1",
        "runtime.name==runc",
        "labels.foo",
        "labels.foo==bar",
        'labels."containerd.io/x"==1',
        "labels.a.b==c=d:e",
        "labels.nothing!=x",
        'id=="web-1"',
        r'id=="web\x2d1"',
        r'id=="\167eb-1"',
        r"id~=/^web\-\d$/",
        r"id~=/^web-\\d$/",
        r"labels.backspace~=|^\b$|",
        "id~=|^web|,labels.foo==bar",
        "image~=|/nginx|",
        'labels."empty-looking"==" "',
        "id~=[[:digit:]]$",
        r"id~=\pL-\d\z",
        r"id~=\Qweb-1\E",
        "id~=w(?i)EB",
        'labels.greek~="(?i)Σ"',
    ],
)
def test_matches(text: str) -> None:
    assert matches(text)


@pytest.mark.parametrize(
    "text",
    [
        "labels.nothing",
        "id==web-2",
        "id!=web-1",
        "id==web-1,labels.foo==baz",
        "unknown",
        "unknown.path==x",
        "id~=(",
        "id~=(?=web)web",
        r"id~=(w)eb|\1",
        r'id~="\ud800"',
        r'labels.digit~="\\d"',
        "labels.line~=one$",
        "sandbox_id",
    ],
)
def test_does_not_match(text: str) -> None:
    assert not matches(text)


@pytest.mark.timeout(5)
def test_an_expression_takes_linear_time() -> None:
    """One that goes back and tries again would take longer than anybody lives."""
    assert not compile_filters(["id~=^(a+)+$"])(fields(Container("a" * 70 + "b0")))


@pytest.mark.timeout(5)
def test_a_request_has_a_limited_number_of_expressions() -> None:
    """Each of them takes its time."""
    assert matches(*["id~=none"] * 31, "id~=web")
    for filters in ([r"id~=|\pN{1000}|"] * 1000, [",".join([r"id~=|\pN{1000}|"] * 1000)]):
        with pytest.raises(InvalidArgument, match="more than 32 regular expressions"):
            compile_filters(filters)


def test_a_bad_expression_is_not_complained_about(capfd: pytest.CaptureFixture[str]) -> None:
    """The daemon's log is not written by clients."""
    assert not matches("id~=(", "id~=(?=web)")
    assert capfd.readouterr() == ("", "")


def test_strings_are_alternatives_and_none_means_all() -> None:
    assert matches("id==x", "labels.foo==bar")
    assert not matches("id==x", "id==y")
    assert matches()
    assert matches("id==x", "")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("id==a b", "[id==a  >|b|< ]"),
        ("==a", "[ >|=|< =a]"),
        ("id=a", "[id >|=|< a]"),
        ('id=="a', '[id=="a]'),
        (r'id=="\q"', r'[id==" >|\|< q"]'),
        ('id=="a\nb"', '[id=="a >|\n|< b"]'),
        ("id,", "[id,]"),
        ("labels.x==", "[labels.x==]"),
        ("id.'x'", "[id. >|'|< x']"),
    ],
)
def test_a_syntax_error_names_its_place(text: str, place: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        compile_filters(["id", text])
    assert f"filters: parse error: {place}: " in str(error.value)


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    with suppress(InvalidArgument):
        compile_filters([text])(OBJECT)


def _quoted(value: str) -> str:
    return (
        '"'
        + "".join(f"\\U{ord(char):08x}" if char in '"\\\n' or not char.isprintable() else char for char in value)
        + '"'
    )


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_quoted_label_finds_itself(key: str, value: str) -> None:
    adaptor: Adaptor = fields(Container("c", labels={key: value}))
    passes = compile_filters([f"labels.{_quoted(key)}=={_quoted(value)}"])
    assert passes(adaptor)
    assert not passes(fields(Container("c", labels={key: value + "x"})))


@given(st.lists(st.sampled_from(["id==a", "id!=a", "labels.x", "id~=^a"]), min_size=1))
def test_one_string_is_a_conjunction_several_are_a_disjunction(selectors: list[str]) -> None:
    adaptor = fields(Container("a"))
    single = [compile_filters([selector])(adaptor) for selector in selectors]
    assert compile_filters([",".join(selectors)])(adaptor) == all(single)
    assert compile_filters(selectors)(adaptor) == any(single)
