"""The native module is built so that a defect in it ends the process instead of running code."""

import subprocess
from importlib import util

import pytest

import cloister._native as native


def readelf(*options):
    # binutils come with every compiler that can have built the module.
    module = util.find_spec("cloister._native").origin
    return subprocess.run(
        ["readelf", "-W", *options, module], capture_output=True, text=True, check=True
    ).stdout


def test_functions_with_buffers_guard_their_return_address():
    assert "__stack_chk_fail" in readelf("--dyn-syms")


def test_calls_of_the_c_library_check_their_sizes():
    assert native.FORTIFY_LEVEL >= 2


def test_addresses_of_imported_functions_are_read_only_once_loaded():
    assert "GNU_RELRO" in readelf("--segments")
    assert "BIND_NOW" in readelf("--dynamic")


def test_no_segment_can_be_written_and_executed():
    segments = [line.split() for line in readelf("--segments").splitlines()]
    loaded = [words for words in segments if words and words[0] in ("LOAD", "GNU_STACK")]
    assert len(loaded) >= 3
    for words in loaded:
        flags = "".join(words[6:-1])
        assert not {"W", "E"} <= set(flags), words
    assert any(words[0] == "GNU_STACK" for words in loaded)


@pytest.mark.parametrize("option", ["RPATH", "RUNPATH", "TEXTREL"])
def test_no_library_is_looked_for_in_a_folder_of_the_build(option):
    assert f"({option})" not in readelf("--dynamic")
