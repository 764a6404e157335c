"""Texts from files: in a fixed order, with clear errors; and what is held out is nowhere else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_study.data.texts import read_texts, split_texts


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    files = {"b.txt": b"2", "a/z.md": b"1", "c.RST": b"3", "d.py": b"no", ".e.txt": b"no", ".git/f.txt": b"no"}
    assert read_texts(write(tmp_path, {**files, "empty.txt": b" \n"})) == ["1", "2", "3"]


def test_a_file_may_have_any_name_and_a_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path, {"x.log": b"\xef\xbb\xbfa\r\nb"})
    assert read_texts(tmp_path / "x.log") == ["a\r\nb"]


def test_bad_texts_are_told(tmp_path: Path) -> None:
    write(tmp_path, {"bad.txt": b"ab\xffc", "none/x.py": b"1", "empty/a.txt": b"", "empty/b.md": b"\n\n"})
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such file or folder"):
        read_texts(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"bad.txt: byte 0xFF at 2 is no UTF-8: convert it, or remove it"):
        read_texts(tmp_path / "bad.txt")
    with pytest.raises(ValueError, match=r"none: has 0 files whose names end in .txt, .md, .rst"):
        read_texts(tmp_path / "none")
    with pytest.raises(ValueError, match=r"empty: holds no text: 2 files, all empty"):
        read_texts(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"a.txt: holds no text: 1 file, all empty"):
        read_texts(tmp_path / "empty/a.txt")


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=25), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_nothing_is_lost_and_nothing_is_on_both_sides(texts: list[str], held_out: float) -> None:
    texts = [f"begins{text}\nends" for text in texts]
    train, out = split_texts(texts, held_out)
    assert train
    assert out
    if len(texts) >= 10:  # whole texts
        assert sorted(train + out) == sorted(texts)
    together = sum(len(text.strip()) for text in train + out)
    assert together <= sum(map(len, texts))


def test_one_text_loses_its_last_lines() -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    train, out = split_texts([text], 0.1)
    assert train[0] + out[0] == text
    assert train[0].endswith("\n")
    assert abs(len(out[0]) - 0.1 * len(text)) < 10
    train, out = split_texts(["x" * 100], 0.1)
    assert (len(train[0]), len(out[0])) == (90, 10)  # no line end: anywhere


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_makes_no_sense_is_told(held_out: float) -> None:
    with pytest.raises(ValueError, match=f"held_out is {held_out}, expected above 0 and below 1"):
        split_texts(["one", "two"], held_out)


def test_too_little_text_is_told() -> None:
    with pytest.raises(ValueError, match="the text has 1 characters, which leaves nothing to train on: use more text"):
        split_texts(["x"], 0.1)
