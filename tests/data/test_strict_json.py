"""JSON that means one thing is read, by position and record by record; anything else is refused with line and byte."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_remember.data.strict_json import JSONError, line_records, list_records, parse, place

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)

quick = settings(deadline=None, max_examples=40, database=None)


def refusal(function, data: bytes) -> JSONError:
    with pytest.raises(JSONError) as caught:
        function(data)
    return caught.value


def records(data: bytes, find=list_records) -> list:
    spans = find(data)
    return [parse(data[start:end]) for start, end in zip(spans[::2], spans[1::2], strict=True)]


@quick
@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 1]), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_records_found_by_position_equal_the_file_parsed_whole(values, indent, ascii_only, newline):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    data = text.replace("\n", newline).encode("utf-8", "surrogatepass")
    try:
        expected = json.loads(data)
    except UnicodeDecodeError:
        return
    assert records(data) == expected
    assert records(b"\xef\xbb\xbf" + data + b"\n") == expected


@quick
@given(st.lists(VALUES.filter(lambda value: value is not None), max_size=5), st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_lines_found_by_position_equal_the_lines_parsed_alone(values, newline):
    data = newline.join(json.dumps(value).encode() for value in values)
    assert records(data, line_records) == values
    assert records(b"\xef\xbb\xbf" + data + newline, line_records) == values


@quick
@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused_with_the_one_error(data):
    for function in (
        parse,
        list_records,
        line_records,
        lambda data: records(data),
        lambda data: records(b"[" + data + b"]"),
    ):
        try:
            function(data)
        except JSONError as error:
            assert error.code.startswith("json.") and error.why and error.fix


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "json.duplicate_key", "'a' stands twice"),
        (b'{"a": {"x": 1, "x": 1}}', "json.duplicate_key", "'x' stands twice"),
        (b'{"a": NaN}', "json.number", "NaN"),
        (b'{"a": -Infinity}', "json.number", "-Infinity"),
        (b'{"a": 1e999}', "json.number", "1e999"),
        (b'{"a": ' + b"9" * 5000 + b"}", "json.number", "4300 digits"),
        (b"[" * 100_000 + b"]" * 100_000, "json.depth", "nested too deeply"),
        (b'{"a": ' * 100_000, "json.depth", "nested too deeply"),
        (b'{"a": "\xff"}', "json.encoding", "0xff is not UTF-8"),
        (b'{"a": 1', "json.syntax", "delimiter"),
        ('{"a": 1}'.encode("utf-16"), "json.encoding", "UTF-16"),
    ],
)
def test_json_with_two_meanings_or_none_is_refused(data, code, said):
    error = refusal(parse, data)
    assert error.code == code and said in error.why


@pytest.mark.parametrize(
    ("data", "said", "offset"),
    [
        (b'{"a": 1}', "not a JSON list", 0),
        (b"", "not a JSON list", 0),
        (b'[{"a": 1}', "ends inside the list", 9),
        (b'[{"a": "never', "string that never ends", 7),
        (b'[{"a": 1]}', "closes nothing", 8),
        (b"[1] [2]", "after the end", 4),
        (b'[{"a": ' + b"[" * 100_000, "nested too deeply", 105),
        ("[]".encode("utf-16-le"), "UTF-16", 0),
        ("[]".encode("utf-16"), "UTF-16", 0),
    ],
)
def test_a_list_whose_records_cannot_be_told_apart_is_refused_with_its_place(data, said, offset):
    error = refusal(list_records, data)
    assert said in error.why and error.offset == offset


def test_place_is_what_an_editor_shows():
    assert place(b"[\n1,\n2 3]", 7) == "line 3, byte 7"


def test_a_missing_comma_spoils_only_its_own_record():
    data = b'[{"a": 1} {"b": 2}, {"c": 3}]'
    spans = list_records(data)
    assert len(spans) == 4
    assert refusal(parse, data[spans[0] : spans[1]]).offset == 9
    assert parse(data[spans[2] : spans[3]]) == {"c": 3}
