"""The manifest of a runtime: one form, everything in it, and no environment."""

import json
import os
import subprocess
import sys

import pytest

from cloister.attest.runtime_manifest import (
    ISOLATED,
    MAX_MANIFEST_BYTES,
    RuntimeManifest,
    first_environment,
    restart_isolated,
)
from cloister.errors import AttestationError, InputError
from cloister.wire.process import python

MADE = RuntimeManifest("1.0", ("python", "-I", "serve", "ä"), bundle="ab", vendor="cd", license="l")


def test_its_bytes_are_canonical_and_say_everything():
    text = MADE.to_bytes()
    assert json.loads(text) == {
        "version": "1.0", "arguments": ["python", "-I", "serve", "ä"], "environment": {},
        "bundle": "ab", "vendor": "cd", "license": "l",
    }  # fmt: skip
    assert RuntimeManifest.from_bytes(text) == MADE
    assert len(MADE.digest) == 32
    fields = {name: f"other {name}" for name in ("version", "bundle", "vendor", "license")}
    others = [RuntimeManifest(**{**vars(MADE), name: value}) for name, value in fields.items()]
    others += [RuntimeManifest(**{**vars(MADE), "arguments": ("python",)})]
    assert len({MADE.digest, *(one.digest for one in others)}) == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b",", b", "),
        lambda data: data[:-1],
        lambda data: data.replace(b'"bundle"', b'"bundel"'),
        lambda data: data.replace(b'"1.0"', b"1.0"),
        lambda data: data + b" ",
        lambda data: b"[" * 9000,
        lambda data: b" " * (MAX_MANIFEST_BYTES + 1),
    ],
)
def test_other_bytes_are_refused(change):
    with pytest.raises(AttestationError, match="manifest"):
        RuntimeManifest.from_bytes(change(MADE.to_bytes()))


def test_a_runtime_that_has_an_environment_is_refused_with_its_name():
    made = RuntimeManifest("1.0", (), {"LD_PRELOAD": "/tmp/x.so", "PATH": "/bin"})
    with pytest.raises(AttestationError, match="expected none, found LD_PRELOAD; start the"):
        RuntimeManifest.from_bytes(made.to_bytes())


def test_a_command_line_that_is_too_long_is_refused():
    with pytest.raises(InputError, match="shorten it"):
        RuntimeManifest("1.0", ("x" * MAX_MANIFEST_BYTES,)).to_bytes()


def test_the_environment_is_that_of_the_start(monkeypatch):
    monkeypatch.setenv("CLOISTER_SET_LATER", "1")
    assert "CLOISTER_SET_LATER" not in first_environment()
    with pytest.raises(AttestationError, match="environment"):
        RuntimeManifest.of_this_process("1.0")


def test_a_process_with_an_environment_starts_anew_without(monkeypatch):
    class Left(Exception):  # noqa: N818  (execve does not return)
        pass

    started = []

    def execve(path, arguments, environment):
        started.append((path, arguments, environment))
        raise Left

    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(Left):
        restart_isolated(["trusted", "serve"])
    assert started == [(found := python()[0], [found, *ISOLATED, "trusted", "serve"], {})]


def test_an_isolated_process_goes_on(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", *ISOLATED, "trusted", "serve"])
    monkeypatch.setattr(os, "execve", None)
    restart_isolated(["trusted", "serve"])


def test_an_isolated_process_has_no_environment():
    code = (
        "from cloister.attest.runtime_manifest import RuntimeManifest;"
        "print(RuntimeManifest.of_this_process('1.0', bundle='ab').to_bytes().decode())"
    )
    ran = subprocess.run(
        [python()[0], "-I", "-X", "utf8", "-c", code], env={}, capture_output=True, check=True
    )
    found = RuntimeManifest.from_bytes(ran.stdout.strip())
    assert (found.environment, found.bundle) == ({}, "ab")
    assert found.arguments == (python()[0], "-I", "-X", "utf8", "-c", code)
