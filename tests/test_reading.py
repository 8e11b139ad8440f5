"""Reading what others made: one kind of failure, whatever a parser stumbles over."""

import os

import pytest

from cloister.errors import EncryptionError, InputError
from cloister.reading import open_regular, parsing


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
