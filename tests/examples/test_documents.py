"""The documents: links lead somewhere, named files exist, the README's Python runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_there_are_documents():
    assert len(DOCUMENTS) >= 13


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_named_files_exist(path):
    text = path.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    missing = [link for link in links if not (path.parent / link).exists()]
    named = re.findall(r"`((?:tests|examples|src|docs)/[\w/.-]+)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    inside = re.findall(r"`((?:field|graph|plan|wire|trusted|worker)/\w+\.py)`", text)
    missing += [name for name in inside if not (ROOT / "src/cloister" / name).exists()]
    assert missing == []


def test_python_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "50.9 bits" in done.stdout
    assert "blinded+verified" in done.stdout


def test_commands_of_the_readme_run():
    commands = re.findall(r"^\.venv/bin/cloister (.*?)(?: +#.*)?$", _readme(), re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        line = f"{sys.executable} -m cloister {command}"
        done = subprocess.run(["/bin/sh", "-c", line], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_the_readme_names_every_verb_of_the_help():
    done = subprocess.run(
        [sys.executable, "-m", "cloister", "--help"], capture_output=True, text=True, check=True
    )
    rows = _readme().split("| verb |")[1].split("##")[0]
    verbs = re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)
    assert verbs
    assert all(re.search(rf"\b{verb}\b", done.stdout) for verb in verbs)


def _readme():
    return (ROOT / "README.md").read_text()
