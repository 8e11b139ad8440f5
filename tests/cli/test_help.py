"""The help of every verb is the stored one, so that a changed option shows in review."""

import pytest
from typer import rich_utils

from cli import help_texts


@pytest.fixture
def plain(monkeypatch):
    for name in ("MAX_WIDTH", "FORCE_TERMINAL", "COLOR_SYSTEM"):
        monkeypatch.setattr(rich_utils, name, getattr(rich_utils, name))
    monkeypatch.setenv("COLUMNS", "")
    help_texts.plainly()


def test_help_is_the_stored_one(plain):
    stored = help_texts.STORED.read_text(encoding="utf-8").splitlines()
    # After a change: python tests/cli/help_texts.py
    assert help_texts.help_texts().splitlines() == stored


@pytest.mark.parametrize("verb", help_texts.verbs())
def test_every_verb_gives_an_example(plain, cloister, verb):
    ran = cloister(*verb.split(), "--help")
    assert ran.code == 0
    assert f" Example: cloister {verb} " in ran.out.replace("\n", " ") + " "


def test_the_command_alone_prints_its_help(plain, cloister):
    assert cloister().out == cloister("--help").out
