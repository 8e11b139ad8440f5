"""The help of every verb, as reviewers see it change.

python tests/cli/help_texts.py        writes help.txt anew
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

from typer import rich_utils
from typer.main import get_command

from cloister.cli.main import app, main

STORED = Path(__file__).with_name("help.txt")
WIDTH = 100


def verbs() -> list[str]:
    """Every verb that does something, such as `pads make`."""

    def under(command, path: str) -> Iterator[str]:
        children = getattr(command, "commands", None)
        if children is None:
            yield path
            return
        for name, child in children.items():
            yield from under(child, f"{path} {name}".strip())

    return list(under(get_command(app), ""))


def help_texts() -> str:
    """What `--help` prints, of the command and of every verb."""
    text = "".join(f"$ cloister {verb}\n{_help(verb)}" for verb in ("", *verbs()))
    return "\n".join(line.rstrip() for line in text.split("\n"))


def _help(verb: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main([*verb.split(), "--help"]) == 0
    return shown.getvalue()


def plainly() -> None:
    """Let help have one width, and no colours, wherever it is printed."""
    rich_utils.MAX_WIDTH, rich_utils.FORCE_TERMINAL, rich_utils.COLOR_SYSTEM = WIDTH, False, None
    os.environ["COLUMNS"] = str(WIDTH)


if __name__ == "__main__":
    plainly()
    STORED.write_text(help_texts(), encoding="utf-8")
