"""Names in files cannot move the cursor, change colours, or write lines of their own."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from rich.console import Console

from cloister import examples
from cloister.cli import console

DIGITS = Path(examples.__file__).with_name("digits.onnx")

HOSTILE = {
    "escape": "conv\x1b]0;OWNED\x07\x1b[2J\x1b[1;1Hclaims: everything is checked",
    "line": "a\n    learns  open (1 node)  nothing\nb",
    "return": "harmless\rpolicy slalom",
    "direction": "abc\u202edesrever",
    "c1": "a\x9b2Jb",
}


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE)
def hostile(request):
    return request.param


def shown(ran):
    for text in (ran.out, ran.err):
        assert all(c.isprintable() or c == "\n" for c in text), repr(text)
        assert "    learns  open (1 node)  nothing" not in text.splitlines()
    return ran.out + ran.err


def model(tmp_path, name):
    changed = onnx.load(DIGITS)
    for node in changed.graph.node:
        node.name = name
    path = tmp_path / "m.onnx"
    path.write_bytes(changed.SerializeToString())
    return path


@pytest.mark.parametrize("verb", ["inspect", "compare", "run"])
def test_names_of_nodes(cloister, tmp_path, hostile, verb):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32))
    given = [tmp_path / "x.npy"] if verb != "inspect" else []
    ran = cloister(verb, model(tmp_path, hostile), *given)
    assert ran.code == 0, ran.err
    text = shown(ran)
    if verb != "run":
        assert repr(hostile)[1:-1][:20] in text.replace("\n", "")


def test_names_in_errors(cloister, tmp_path, hostile):
    changed = onnx.load(DIGITS)
    changed.graph.node[0].op_type = hostile
    path = tmp_path / "m.onnx"
    path.write_bytes(changed.SerializeToString())
    ran = cloister("inspect", path)
    assert ran.code == 2
    assert len(shown(ran).strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["escape", "direction", "c1"])  # a line of the file is a name
def test_names_of_classes(cloister, tmp_path, kind):
    hostile = HOSTILE[kind]
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 8, 8), np.float32))
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join([hostile] * 10), encoding="utf-8")
    ran = cloister("run", DIGITS, tmp_path / "x.npy", "--labels", labels)
    assert repr(hostile)[1:-1] in shown(ran)


def test_names_of_files(cloister, tmp_path, hostile):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    (folder / hostile.replace("/", "")).write_text("skipped")
    text = shown(cloister("run", DIGITS, folder))
    assert "1 skipped" in text
    shown(cloister("run", tmp_path / hostile.replace("/", ""), folder))


def test_lines_and_cells(capsys):
    console.out().print("one\ntwo\x1b[2J")
    console.out().print(console.table(("a\x1b[1m",), [("x\ny",)], title="t\x07"))
    text = capsys.readouterr().out
    assert "one\ntwo\\x1b[2J" in text
    assert r"x\ny" in text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert isinstance(console.out(), Console)


def test_machines_get_names_as_they_are(cloister, tmp_path):
    ran = cloister("inspect", model(tmp_path, "a\x1bb"), "--json")
    assert "\x1b" not in ran.out
    json.loads(ran.out)


def test_work_without_a_terminal_says_now_and_then_how_far_it_is(monkeypatch, capsys):
    seconds = iter([0.0, 4.0, 11.0, 12.0, 21.5])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(seconds))
    with console.stages() as update:
        for done in range(1, 5):
            update("steps", 1000 * done, 4000)
    assert capsys.readouterr().err.splitlines() == [
        "steps: 2,000 of 4,000",
        "steps: 4,000 of 4,000",
    ]


def test_steps_with_results_have_a_line_each_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    with console.steps("attacks") as update:
        update(1, 2, "ridge: done")
        update(2, 2, "")
    assert capsys.readouterr().err.splitlines() == ["1 of 2: ridge: done"]
