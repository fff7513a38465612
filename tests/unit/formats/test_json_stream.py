import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mask2former_mcp.formats import json_stream
from mask2former_mcp.formats.fault import FormatError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def expected(content: dict[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in content.items():
        flat += [(key, v) for v in value] if isinstance(value, list) else [(key, value)]
    return flat


@given(st.dictionaries(st.text(), values, max_size=5), st.integers(1, 40), st.sampled_from([None, 2]))
def test_any_object_streams_to_its_elements_whatever_the_window(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], chunk: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("stream") / "x.json"
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        assert list(json_stream.entries(path)) == expected(content)


def test_a_list_is_valid_json_but_not_what_these_files_hold(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1, 2, 3]", encoding="utf-8")
    with pytest.raises(FormatError, match=r"list\.json: this is not a COCO file: it holds a list") as caught:
        list(json_stream.entries(path))
    assert caught.value.code == "bad_value"


@pytest.mark.parametrize(
    "text", ["", "{", '{"a"}', '{"a": [1, }', '{"a": 1} x', '{"a": [1 2]}', '{"a": tru}', "{1: 2}", '{"a": "b']
)
def test_broken_json_names_the_file_and_the_place(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=r"broken\.json: not valid JSON near character \d+") as caught:
        list(json_stream.entries(path))
    assert caught.value.code == "not_json"


def test_a_missing_file_and_binary_content_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        list(json_stream.entries(tmp_path / "no.json"))
    assert caught.value.code == "missing_file"
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(FormatError, match="UTF-8"):
        list(json_stream.entries(tmp_path / "binary.json"))


def test_progress_reaches_the_end_and_may_stop_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": list(range(100))}))
    told: list[int] = []
    list(json_stream.entries(path, progress=told.append))
    assert told[-1] == path.stat().st_size

    def stop(_: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        list(json_stream.entries(path, progress=stop))
