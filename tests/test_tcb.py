"""What the trusted side and the authority load stays within its budget (tools/tcb.py)."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "tcb.py"
_spec = importlib.util.spec_from_file_location("tcb", TOOL)
tcb = importlib.util.module_from_spec(_spec)
sys.modules["tcb"] = tcb  # dataclasses look their module up
_spec.loader.exec_module(tcb)

INLINE, STORE, HIDDEN, AUTHORITY = tcb.BUDGETS
ONLY_HIDDEN = {
    "cloister.trusted.module_engines", "cloister.trusted.query_counter",
    "cloister.graph.module_node", "cloister.bundle.compiled_module",
}  # fmt: skip
USED = {
    INLINE: {"cloister.trusted.executor", "cloister.wire.shm.shm_link", "onnxruntime"},
    STORE: {"cloister.trusted.executor", "cloister.trusted.pads.pad_ledger"},
    HIDDEN: {"cloister.trusted.engines.module_engine", *ONLY_HIDDEN},
    AUTHORITY: {"cloister.authority.ledger", "cloister.wire.https.server", "cryptography"},
}


@pytest.fixture(scope="module")
def measured():
    return tcb.measure()


@pytest.mark.parametrize("process", USED)
def test_a_process_keeps_to_its_budget(measured, process):
    assert USED[process] <= set(measured[process])
    assert tcb.excesses(measured[process], tcb.BUDGETS[process]) == []


def test_what_runs_modules_is_loaded_for_plans_with_one(measured):
    for process in (INLINE, STORE, AUTHORITY):
        assert ONLY_HIDDEN.isdisjoint(measured[process])


def planted(*names):
    return json.loads(tcb.run("".join(f"import {name}\n" for name in names) + tcb.REPORT))


@pytest.mark.parametrize("name", ["cloister.published", "cloister.cli", "onnx", "grpc"])
def test_a_planted_import_is_found(name):
    for budget in tcb.BUDGETS.values():
        assert tcb.excesses(planted("cloister.ring.linear", name), budget) == [f"loads {name}"]


def test_the_command_fails_for_a_planted_import_and_for_too_many_lines(monkeypatch, capsys):
    clean, dirty = planted("cloister.errors"), planted("cloister.errors", "onnx")
    monkeypatch.setattr(tcb, "measure", lambda: {INLINE: clean, AUTHORITY: clean})
    assert not tcb.main()
    assert "cloister.errors" in capsys.readouterr().out
    monkeypatch.setattr(tcb, "measure", lambda: {INLINE: clean, AUTHORITY: dirty})
    assert tcb.main()
    assert capsys.readouterr().err == "authority: loads onnx\n"
    monkeypatch.setitem(tcb.BUDGETS, INLINE, tcb.Budget(9, ()))
    assert tcb.main()
    assert "lines are over its budget of 9" in capsys.readouterr().err


def test_lines_of_code_are_neither_blank_nor_prose():
    text = '"""A module\n\nof two."""\n\nA = 1  # why\n# a remark\n"""Of A."""\nB = """\nx\n"""\n'
    assert tcb.code_lines(text) == 4
