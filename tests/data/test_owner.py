"""What an owner decides: privacy in one word, and the notes for those who add samples."""

import json
from dataclasses import replace

import pytest

from cloister.data.columns import Column
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.data.owner import Notes, Privacy, read_ranges
from cloister.errors import EncryptionError, InputError

INFO = DatasetInfo("set", (1, 1, 2), 3, Encoding(1.0, 0.0, 8), 0, 1)


@pytest.mark.parametrize(("level", "mode", "rank"), [
    ("strict", "budgeted", None), ("budget=0", "budgeted", 0), ("budget=16", "budgeted", 16),
])  # fmt: skip
def test_privacy_is_one_word(level, mode, rank):
    assert (Privacy(level).mode, Privacy(level).budget_rank) == (mode, rank)
    assert Privacy(level) == Privacy(level, labels_to="server")
    assert Privacy() == Privacy("strict")


def test_paper_needs_consent_and_only_paper_takes_it():
    assert Privacy("paper", allow_unbounded_leakage=True).mode == "paper"
    with pytest.raises(InputError, match="allow_unbounded_leakage"):
        Privacy("paper")
    for level in ("strict", "budget=3"):
        with pytest.raises(InputError, match="only it takes"):
            Privacy(level, allow_unbounded_leakage=True)
    for limit in ({"value_bits": 8}, {"max_bits": 0}, {"many_functions": True}):
        with pytest.raises(InputError, match="paper has no limits"):
            Privacy("paper", allow_unbounded_leakage=True, **limit)


@pytest.mark.parametrize("level", [
    "", "Strict", "budget", "budget=", "budget=-1", "budget=1.5", "budget=1 ", "budget=\u0661",
    "budget=" + "9" * 10, "budgeted", "strict\n",
])  # fmt: skip
def test_other_words_are_refused(level):
    with pytest.raises(InputError, match=r"strict\|budget=N\|paper"):
        Privacy(level)


def test_labels_go_to_a_party_that_there_is():
    with pytest.raises(InputError, match="labels_to anyone: server or trusted"):
        Privacy(labels_to="anyone")


def test_notes_come_back():
    age, height = Column("age", "number", 0.0, 9.0), Column("height", "number", -1.5, 2.5, fill=1.0)
    notes = Notes("table", ("a", "b", "c"), (age, height))
    assert Notes.read(notes.to_json(), INFO) == notes
    sex = Column("sex", "category", values=("f", "m"), fill="f")
    for columns in ((sex,), (age, Column("visit", "date", -3.0, 20000.0, fill=4.0))):
        notes = Notes("table", ("a", "b", "c"), columns)
        assert Notes.read(notes.to_json(), INFO) == notes
    for columns in ((age, sex), (age,), ()):
        with pytest.raises(EncryptionError, match=r"describes columns of . elements, but has 2"):
            Notes.read(Notes("table", ("a", "b", "c"), columns).to_json(), INFO)
    assert json.loads(Notes("pixels", ("a", "b", "c")).to_json()) == {
        "kind": "pixels", "classes": ["a", "b", "c"],
    }  # fmt: skip
    with pytest.raises(EncryptionError, match="names 2 classes"):
        Notes.read(Notes("pixels", ("a", "b")).to_json(), INFO)
    with pytest.raises(EncryptionError, match="names 4 classes"):
        Notes.read(Notes("pixels", ("a", "b", "c", "c")).to_json(), INFO)
    for hostile in (
        Notes("table", ("a", "b", "c"), (age, age)),
        Notes("pixels", ("a", "b", "\ud800")),
        Notes("table", ("a", "b", "c"), (age, Column("\udfff", "number", 0.0, 9.0))),
    ):
        with pytest.raises(EncryptionError, match="was not made by"):
            Notes.read(hostile.to_json(), INFO)


def test_classes_are_numbered_as_the_data_set_does():
    notes = Notes("values", ("well", "sick"))
    info = replace(INFO, classes=2)
    assert notes.positions(("sick", "well", "sick"), info).tolist() == [1, 0, 1]
    with pytest.raises(InputError, match="class 'cured' is not one of data set set"):
        notes.positions(("cured",), info)


def test_a_file_of_ranges(tmp_path):
    path = tmp_path / "ranges.json"
    path.write_text('{"age": [0, 120], "pulse": [40.5, 200]}')
    assert read_ranges(path) == {"age": (0.0, 120.0), "pulse": (40.5, 200.0)}
    path.write_text('{"sex": ["f", "m", "x"], "seen": ["2000-01-01", "2030-01-01"]}')
    assert read_ranges(path) == {
        "sex": ("f", "m", "x"), "seen": ("2000-01-01", "2030-01-01"),
    }  # fmt: skip
    for text in ("[1, 2]", '{"age": 3}', "", "7", '"text"'):
        path.write_text(text)
        with pytest.raises(InputError, match="not a file of ranges"):
            read_ranges(path)
    for text in (
        '{"age": [0]}', '{"age": [9, 0]}', '{"age": [0, "9"]}', '{"age": []}', '{"age": [1, 2, 3]}',
        '{"age": ["2030-01-01", "2000-01-01"]}', '{"age": ["m", "m"]}', '{"age": [NaN, 1]}',
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(InputError, match="column age: "):
            read_ranges(path)
