"""Texts of files and of other parties are harmless on a terminal."""

import pytest

from cloister.errors import CloisterError, InputError, printable

HOSTILE = {
    "a\x1b]0;title\x07\x1b[2Jb": r"a\x1b]0;title\x07\x1b[2Jb",
    "a\nclaims: everything is checked": r"a\nclaims: everything is checked",
    "a\rb\x08c\x7fd\x9be": r"a\rb\x08c\x7fd\x9be",
    "left\u202etfel\u2066\u200b": r"left\u202etfel\u2066\u200b",
    "one\u2028two\u0085three": r"one\u2028two\x85three",
    "\ud800": r"\ud800",
    "Straße 模型 naïve": "Straße 模型 naïve",
    "": "",
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items())
def test_what_does_not_show_is_written_out(text, shown):
    assert printable(text) == shown
    assert str(InputError(f"node {text}")) == f"node {shown}"


def test_every_error_is_one_printable_line():
    def kinds(root):
        yield root
        for kind in root.__subclasses__():
            yield from kinds(kind)

    found = list(kinds(CloisterError))
    assert len(found) > 15
    for kind in found:
        assert str(kind("x\x1b[2J\ny")) == r"x\x1b[2J\ny"
