"""An owner's array of targets: read as classes, labels or numbers, or refused by name."""

import numpy as np
import pytest

from cloister.data.array_targets import read_targets
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.data.owner import Notes, read_target_ranges
from cloister.data.sources import ArraySource, require_fewer_classes_than_samples
from cloister.data.target_encoding import are_targets, one_hot
from cloister.errors import EncryptionError, InputError, RangeError, ShapeError

ONE_HOT = np.eye(3, dtype=int)[[0, 2, 1, 2]]
SEVERAL = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]])


def read(y, targets=None):
    return read_targets(np.asarray(y), 4, targets=targets)


@pytest.mark.parametrize(("y", "targets", "kind", "labels", "remark"), [
    ([0, 2, 1, 2], None, "classes", [0, 2, 1, 2], ""),
    ([[0], [2], [1], [2]], None, "classes", [0, 2, 1, 2], ""),
    (np.array([0, 2, 1, 2], np.uint64), None, "classes", [0, 2, 1, 2], ""),
    ([True, False, True, True], None, "classes", [1, 0, 1, 1], ""),
    ([0.0, 2.0, 1.0, 2.0], None, "classes", [0, 2, 1, 2], "read as classes; --targets numbers"),
    (np.array([0, 2, 1, 2], np.float16), "classes", "classes", [0, 2, 1, 2], ""),
    (ONE_HOT, "classes", "classes", [0, 2, 1, 2], ""),
    (ONE_HOT.astype(bool), "classes", "classes", [0, 2, 1, 2], ""),
    (ONE_HOT, None, "classes", [0, 2, 1, 2], "read as a class (one-hot); --targets labels"),
    (SEVERAL, None, "labels", SEVERAL, ""),
    (SEVERAL.astype(bool), None, "labels", SEVERAL, ""),
    (SEVERAL.astype(float), None, "labels", SEVERAL, ""),
    ([0, 1, 1, 0], "labels", "labels", [[0], [1], [1], [0]], ""),
    ([0.5, 2.0, 1.0, 2.0], None, "numbers", [[0.5], [2.0], [1.0], [2.0]], "read as numbers"),
    ([-1.0, 2.0, 1.0, 2.0], None, "numbers", [[-1.0], [2.0], [1.0], [2.0]], "read as numbers"),
    (SEVERAL * 0.5, None, "numbers", SEVERAL * 0.5, ""),
    ([3, -2, 1, 9], "numbers", "numbers", [[3.0], [-2.0], [1.0], [9.0]], ""),
    (SEVERAL * 7, "numbers", "numbers", SEVERAL * 7.0, ""),
])  # fmt: skip
def test_what_an_array_holds(y, targets, kind, labels, remark):
    found = read(y, targets)
    assert found.targets == kind
    np.testing.assert_array_equal(found.labels, labels)
    assert found.labels.dtype == (np.float64 if kind == "numbers" else np.int64)
    assert (remark in " ".join(found.remarks)) and bool(remark) == bool(found.remarks)


def test_whole_numbers_of_many_values_are_numbers():
    y = np.arange(100, 140).astype(float)
    assert read_targets(y, 40).targets == "numbers"
    assert read_targets(y % 20, 40).targets == "classes"


@pytest.mark.parametrize(("y", "targets", "error", "message"), [
    ([0, 1], None, ShapeError, r"for each of the 4 samples, got int64 \(2,\)"),
    ([0j, 1, 2, 3], None, ShapeError, "complex"),
    (np.zeros((4, 0)), None, ShapeError, r"\(4, 0\)"),
    (np.zeros((4, 2, 2)), None, ShapeError, r"\(4, 2, 2\)"),
    ([0, 1, np.nan, 2], None, RangeError, "sample 2 is NaN or infinite; fill or drop it"),
    ([0, 1, np.inf, 2], "numbers", RangeError, "sample 2 is NaN or infinite"),
    ([0, 1, -3, 2], None, RangeError, "begin at 0, but sample 2 has -3; number"),
    ([0, 1000000, 1, 2], None, RangeError, "1000000 is beyond 65535, and none of 3 to 999999"),
    ([7 << 40, 0, 1, 2], None, RangeError, "is beyond 65535"),
    ([0, 1, 0.5, 2], "classes", RangeError, "sample 2 is no whole number; .* --targets numbers"),
    (SEVERAL, "classes", RangeError, "sample 0 has not exactly one class"),
    (ONE_HOT * 2, None, ShapeError, "rows of integers.*say with --targets"),
    ([0, 1, 2, 1], "labels", RangeError, "sample 2 holds a label that is neither 0 nor 1"),
    (SEVERAL - 1, "labels", RangeError, "sample 0 holds a label that is neither 0 nor 1"),
    ([0, 1, 2, 1], "both", InputError, "targets 'both': give classes, labels, numbers"),
])  # fmt: skip
def test_what_an_array_must_not_hold(y, targets, error, message):
    with pytest.raises(error, match=message):
        read(y, targets)


def test_classes_with_gaps_are_named():
    x = np.zeros((4, 2))
    require_fewer_classes_than_samples(ArraySource(x, np.array([0, 1, 3, 3])))
    with pytest.raises(InputError, match="5 of 8 classes, such as 1, have no sample; number the"):
        require_fewer_classes_than_samples(ArraySource(x, np.array([0, 7, 3, 3])))


def test_unlabelled_samples_have_no_targets():
    found = ArraySource(np.zeros((4, 2)), None)
    assert (found.samples, found.labels, found.names, found.targets) == (4, None, (), "classes")
    info = DatasetInfo("set", (1, 1, 2), 3, Encoding(1.0, 0.0, 8), 0, 1)
    encoder = Notes("values", ("a", "b", "c")).target_encoder(found, info)
    assert encoder.encode(np.array([2, 0])).tolist() == [[0, 0, 0]] * 2


def info(targets, classes=2):
    return DatasetInfo("set", (1, 1, 2), classes, Encoding(1.0, 0.0, 8), 0, 1, targets=targets)


def test_names_find_their_places():
    """A second client's columns in another order, under the first client's names."""
    x = np.zeros((4, 2))
    notes = Notes("values", ("a", "b", "c"))
    mine = ArraySource(x, SEVERAL).named(("c", "a", "b"))
    integers = notes.target_encoder(mine, info("labels", 3)).encode(np.arange(4))
    np.testing.assert_array_equal(integers, SEVERAL[:, [1, 2, 0]])
    with pytest.raises(InputError, match="label 'x' is not one of data set set"):
        notes.target_encoder(ArraySource(x, SEVERAL).named(("a", "b", "x")), info("labels", 3))
    with pytest.raises(InputError, match="label 'c' of data set set is missing"):
        source = ArraySource(x, SEVERAL[:, :2]).named(("a", "b"))
        notes.target_encoder(source, info("labels", 3))
    two = ArraySource(x, np.array([0, 1, 1, 0]))
    assert two.named(("well", "sick", "unclear")).names == ("well", "sick", "unclear")
    assert two.named(("1", "0")).names == ("0", "1")
    with pytest.raises(InputError, match="gives 1 names, but the samples have 2 classes"):
        two.named(("well",))


def test_numbers_become_steps_of_their_range():
    notes = Notes("values", ("age", "pulse"), (), {"age": (0.0, 100.0), "pulse": (40.0, 200.0)})
    y = np.array([[0.0, 120.0], [100.0, 200.0], [50.0, 40.0], [25.0, 160.0]])
    source = ArraySource(np.zeros((4, 2)), y).named(("age", "pulse"))
    integers = notes.target_encoder(source, info("numbers")).encode(np.arange(4))
    assert integers.tolist() == [[-32767, 0], [32767, 32767], [0, -32767], [-16384, 16384]]
    high = ArraySource(np.zeros((4, 2)), y + np.array([0, 1])).named(("age", "pulse"))
    with pytest.raises(RangeError, match=r"sample 1, number pulse.*wider --target-ranges"):
        notes.target_encoder(high, info("numbers")).encode(np.arange(4))


def test_the_ends_of_any_range_can_be_encoded():
    rng = np.random.default_rng(7)
    for low, span in zip(rng.normal(0, 1e3, 300), rng.exponential(1e3, 300), strict=True):
        ends = np.array([[low], [low + span]])
        notes = Notes("values", ("y",), (), {"y": (low, low + span)})
        source = ArraySource(np.zeros((2, 2)), ends, targets="numbers")
        integers = notes.target_encoder(source, info("numbers", 1)).encode(np.arange(2))
        assert integers.tolist() == [[-32767], [32767]]


@pytest.mark.parametrize(("classes", "ranges", "targets", "message"), [
    (("a", "b"), {"a": (0, 1)}, "numbers", "number b: has no range"),
    (("a", "b"), {"a": (0, 1), "b": (2, 2)}, "numbers", "number b: its range needs low < high"),
    (("a", "b"), {"a": (0, 1), "b": (0, np.inf)}, "numbers", "number b: its range"),
    (("a", "b"), {"a": (0, 1), "b": (0, 1), "c": (0, 1)}, "numbers", "c is not one of"),
    (("a", "b"), {"a": (0, 1)}, "labels", "has ranges of numbers, but no numbers"),
])  # fmt: skip
def test_notes_without_usable_ranges_are_refused(classes, ranges, targets, message):
    text = Notes("values", classes, (), ranges).to_json()
    with pytest.raises(EncryptionError, match=message):
        Notes.read(text, info(targets))


def test_notes_of_numbers_come_back():
    notes = Notes("values", ("b", "a"), (), {"b": (0.0, 1.0), "a": (-5.5, 2.0)})
    assert Notes.read(notes.to_json(), info("numbers")) == notes


def test_a_file_of_target_ranges(tmp_path):
    path = tmp_path / "ranges.json"
    path.write_text('{"age": [0, 120]}')
    assert read_target_ranges(path) == {"age": (0.0, 120.0)}
    path.write_text('{"age": "old"}')
    with pytest.raises(InputError, match="not a file of ranges"):
        read_target_ranges(path)


def test_which_integers_are_targets():
    rows = np.array([[0, 1], [1, 1], [0, 0], [2, -1], [32767, -32767], [32768, 0]])
    assert are_targets(rows, "classes").tolist() == [True, False, False, False, False, False]
    assert are_targets(rows, "labels").tolist() == [True, True, True, False, False, False]
    assert are_targets(rows, "numbers").tolist() == [True, True, True, True, True, False]
    assert one_hot(np.array([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_descriptions_say_what_is_not_a_class():
    """Bytes and digests of data sets of classes are what they were."""
    assert b"targets" not in info("classes").to_json()
    for targets, least in (("labels", 1), ("numbers", 1)):
        assert DatasetInfo.from_json(info(targets, least).to_json()) == info(targets, least)
        assert b'"targets":"' + targets.encode() in info(targets).to_json()
    with pytest.raises(InputError, match="needs 2 to"):
        info("classes", 1)
    with pytest.raises(InputError, match="targets must be classes, labels, numbers"):
        info("words")
    for text in (b'"targets":"classes"', b'"targets":"words"', b'"targets":7'):
        damaged = info("labels").to_json().replace(b'"targets":"labels"', text)
        with pytest.raises(EncryptionError, match="data set description"):
            DatasetInfo.from_json(damaged)
