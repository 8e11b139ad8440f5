"""Command lines with their exit codes and all that they print, as files.

A file of transcripts/ is one story, told in one folder:

    $ cloister verb ...     a command; `&` at its end lets it run until the story ends
    text                    a line of standard output
    ! text                  a line of standard error
    = 2                     the exit code, where it is not 0

Lines are compared word by word. `<n>`, `<hex>`, `<path>`, `<address>` and `<...>` stand for what
differs from run to run; the last address and the last hexadecimal text are `$address` and `$hex`
in commands. A line `...` stands for any lines.
"""

import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import numpy as np
import pytest

import cloister as cl
from attest.cases import VECTORS
from cli.help_texts import verbs
from cloister.graph.split import split_points
from cloister.plan import policies, split_report
from plan.split_reports import report_of
from trusted.runtimes import Played

FILES = sorted(Path(__file__).with_name("transcripts").glob("*.txt"))
ROOT = Path(__file__).parents[2]
KINDS = {
    # Of a thousand uniform messages one has a p "below 0.001".
    "n": r"(?:below )?-?[\d,]+(?:\.\d+)?(?:e[+-]?\d+)?",
    "hex": r"[0-9a-f]{8,64}",
    "address": r"(?:https://)?[\w.]+:\d+",
    "path": r"\S+",
    "...": r".*",
}
COLUMNS = "abcdefgh"
TABLE = f"{','.join(COLUMNS)},kind\n" + "".join(
    ",".join(str((7 * row + 13 * at + row * at) % 50) for at in range(len(COLUMNS)))
    + f",{'cat' if row % 3 else 'dog'}\n"
    for row in range(24)
)


@dataclass
class Step:
    command: str
    shown: list[str] = field(default_factory=list)
    code: int = 0


def read(path: Path) -> list[Step]:
    steps: list[Step] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("$ cloister "):
            steps.append(Step(line.removeprefix("$ cloister ")))
        elif line.startswith("= "):
            steps[-1].code = int(line[2:])
        elif line.strip() and not line.startswith("#"):
            steps[-1].shown.append(" ".join(line.split()))
    return steps


def pattern(lines: list[str]) -> re.Pattern[str]:
    """What prints these lines, and nothing else."""
    text = ""
    for line in lines:
        if line == "...":
            text += r"(?:[^\n]*\n)*?"
            continue
        parts = re.split(r"<(n|hex|address|path|\.\.\.)>", line)
        for i, part in enumerate(parts):
            text += re.escape(part) if i % 2 == 0 else f"(?:{KINDS[part]})"
        text += r"\n"
    return re.compile(text)


def unlike(lines: list[str], shown: str) -> str:
    """The first line that was not printed, or that more was."""
    for count in range(1, len(lines) + 1):
        if not pattern([*lines[:count], "..."]).fullmatch(shown):
            return lines[count - 1]
    return "(the end)"


def words(out: str, err: str = "") -> str:
    lines = [*out.splitlines(), *(f"! {line}" for line in err.splitlines())]
    return "".join(f"{' '.join(line.split())}\n" for line in lines if line.strip())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model, pictures and a table, in the current folder."""
    shutil.copy(ROOT / "src/cloister/examples/digits.onnx", tmp_path)
    (tmp_path / "digits").mkdir()
    for picture in sorted((ROOT / "examples/digits").glob("*.png"))[:3]:
        shutil.copy(picture, tmp_path / "digits")
    (tmp_path / "pets.csv").write_text(TABLE)
    (tmp_path / "notes.txt").write_text("no model\n")
    rng = np.random.default_rng(0)
    pictures, classes = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "pictures.npz", x=pictures, y=classes)
    save_reports(tmp_path)
    save_evidence(tmp_path)
    Played(tmp_path).save_policy("machine.toml")
    np.savez(tmp_path / "many.npz", x=rng.integers(0, 256, (300, 8, 8), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLOISTER_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save_reports(folder: Path) -> None:
    """Reports of audits of the digits model: one accepts its later split, the other none."""
    graph = cl.load(folder / "digits.onnx")
    samples = {name: np.ones((2, 1, 8, 8), np.float32) for name in graph.inputs}
    ranges = policies.measure_ranges("slalom", graph, calibration=samples)
    *_, last = split_points(graph)
    for name, accepted in (("report", last.name), ("refusing", None)):
        (folder / name).mkdir()
        split_report.save(report_of(graph, accepted=accepted, ranges=ranges), folder / name)


def save_evidence(folder: Path) -> None:
    """A TDX quote, whole and cut short, Intel's collateral for it, and a policy that names it."""
    quote = (VECTORS / "tdx" / "tdx_quote").read_bytes()
    (folder / "quote.bin").write_bytes(quote)
    (folder / "cut.bin").write_bytes(quote[:2000])
    (folder / "intel").mkdir()
    shutil.copy(VECTORS / "tdx" / "tdx_quote_collateral.json", folder / "intel")
    mrtd = quote[48 + 136 : 48 + 184].hex()
    (folder / "quote.toml").write_text(f'[tdx]\nmrtd = ["{mrtd}"]\n')


def serve(command: list[str], stack: ExitStack) -> str:
    """Start a command that goes on; its first line."""
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-P", "-m", "cloister", *command], stdout=subprocess.PIPE, text=True
        )
    )
    stack.callback(process.kill)
    return process.stdout.readline()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_transcript(cloister, folder, path):
    if re.search(r"\$ cloister (train|audit model|audit input) ", path.read_text(encoding="utf-8")):
        pytest.importorskip("torch")
    known: dict[str, str] = {}
    with ExitStack() as stack:
        for step in read(path):
            line = Template(step.command).substitute(known)
            command = shlex.split(line.removesuffix("&"))
            if line.endswith("&"):
                shown = words(serve(command, stack))
            else:
                ran = cloister(*command)
                assert ran.code == step.code, (step.command, ran)
                shown = words(ran.out, ran.err)
            if not pattern(step.shown).fullmatch(shown):
                pytest.fail(f"$ cloister {step.command}\n{shown}not: {unlike(step.shown, shown)}")
            for kind in ("address", "hex"):
                found = re.findall(rf"(?<!\w){KINDS[kind]}(?!\w)", shown)
                known |= {kind: found[-1]} if found else {}


def test_every_verb_has_a_transcript():
    commands = [step.command for path in FILES for step in read(path)]
    missing = [verb for verb in verbs() if not any(c.startswith(f"{verb} ") for c in commands)]
    assert missing == []


def test_placeholders_stand_for_what_they_say():
    shown = pattern(["a <n> b", "...", "<hex>!"])
    assert shown.fullmatch("a 1,024.5e-3 b\nany\nline\n0123456789abcdef!\n")
    assert shown.fullmatch("a 1 b\n0123456789abcdef!\n")
    assert not shown.fullmatch("a x b\n0123456789abcdef!\n")
    assert not shown.fullmatch("a 1 b\n0123!\n")
    assert not shown.fullmatch("a 1 b\n0123456789abcdef!\nmore\n")
    assert unlike(["a <n>", "b", "c"], "a 1\nx\nc\n") == "b"
    assert unlike(["a <n>"], "a 1\nx\n") == "(the end)"
