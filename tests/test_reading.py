"""Reading what others made: one kind of failure, whatever a parser stumbles over."""

import os

import numpy as np
import pytest

from cloister.base.reading import open_regular, parsing, require_truths
from cloister.errors import EncryptionError, InputError


def test_nothing_but_a_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("pipe", "."):
        with pytest.raises(OSError):
            open_regular(tmp_path / name)
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("shape"), "a.json: damaged (KeyError: 'shape')"),
        (RecursionError(), "a.json: damaged (RecursionError)"),
        (FileNotFoundError(2, "No such file"), "a.json: damaged (No such file)"),
        (ValueError("first\nsecond"), "a.json: damaged (ValueError: first)"),
        (MemoryError(), "a.json: damaged (MemoryError)"),
    ],
)
def test_what_parsers_raise_becomes_an_error_of_the_library(error, text):
    with pytest.raises(EncryptionError) as caught, parsing("a.json: damaged", kind=EncryptionError):
        raise error
    assert str(caught.value) == text
    assert caught.value.__cause__ is error


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.json: no such file"), parsing("a.json: damaged"):
        (tmp_path / "a.json").read_bytes()


def test_own_errors_and_interruptions_pass_through():
    for error in (InputError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, parsing("a.json: damaged"):
            raise error
        assert caught.value is error


def stored(*numbers):
    return np.array(numbers, np.uint8).view(np.bool_)


@pytest.mark.parametrize("array", [stored(0, 2), stored(255), stored(1, 3).reshape(2, 1)[::-1]])
def test_truth_is_stored_as_0_or_1(array):
    with pytest.raises(EncryptionError, match="'x' holds truth values that are neither 0 nor 1"):
        require_truths(array, "input 'x'", kind=EncryptionError)


def test_other_arrays_are_none_of_its_business():
    for array in (stored(0, 1, 1), stored(), np.array(True), np.array([255, 2])):
        require_truths(array, "input 'x'")
