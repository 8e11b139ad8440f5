import json

import pytest

from cloister.cli.bench import fe
from cloister.cli.bench.baselines import Timing
from cloister.cli.main import main

SMALL = (fe.Task("small", 2, 3, 2, 1000.0, {"mask": 1e9, "lwe": 0.0}),)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(fe, "TASKS", SMALL)
    monkeypatch.setattr(fe, "MIN_RUN_S", 0.0)
    for name, size in (("BATCH", 3), ("INPUTS", 5), ("HIDDEN", 2)):
        monkeypatch.setattr(fe, name, size)


def test_figures_agree_with_each_other(small, capsys):
    assert main(["bench", "fe", "--repeats", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["back_end"]: row for row in found["products"]}
    assert {"mask", "lwe", "lwe, first use", "ddh"} == set(rows)
    for row in rows.values():
        assert row["paper_ratio"] == pytest.approx(1000.0 / row["median_ms"])
    assert rows["mask"]["within_bar"] is True
    assert rows["lwe"]["within_bar"] is False
    assert rows["lwe, first use"]["within_bar"] is None
    layer = found["layer"]
    assert layer["shape"] == [3, 5, 2]
    low, high = layer["ratio_quartiles"]
    assert 0 < low <= layer["ratio"] <= high
    assert layer["within_bar"] == (layer["ratio"] <= fe.LAYER_BAR)
    assert layer["ratios"].keys() == layer["engines_ms"].keys()
    assert layer["ratios"][layer["baseline_engine"]] == layer["ratio"]
    assert "Not considered" in found["lwe_security"]


def test_the_ratio_is_taken_turn_by_turn(small, monkeypatch):
    """A slow turn slows both: ratios 3, 2 and 4, while the medians' ratio is 4."""

    def timed(runs, *, repeats):
        seconds = dict.fromkeys(runs, (9.0, 9.0, 9.0))
        seconds |= {"ONNX Runtime": (1.0, 4.0, 2.0), fe.MASKED: (3.0, 8.0, 8.0)}
        return {name: Timing(values, values) for name, values in seconds.items()}

    monkeypatch.setattr(fe, "interleaved", timed)
    monkeypatch.setattr(fe, "_loops", lambda run: 1)
    for threads in (1, 2):
        layer = fe._layer(threads, 3)
        assert layer["baseline_engine"] == "ONNX Runtime"
        assert (layer["baseline_ms"], layer["masked_ms"]) == (2e3, 8e3)
        assert layer["ratio"] == 3.0
        assert layer["ratio_quartiles"] == [2.5, 3.5]


def test_the_table_names_engine_and_estimator(small, capsys):
    assert main(["bench", "fe", "--repeats", "1"]) == 0
    text = capsys.readouterr().out
    for part in ("masked layer 5x2, batch 3", "lwe, first use", "times faster", "primal uSVP"):
        assert part in text


def test_tasks_are_those_of_the_paper():
    assert [(task.n, task.terms, task.k) for task in fe.TASKS] == [(1, 25, 1), (100, 10, 100)]


@pytest.mark.parametrize("name", ["mask", "lwe", "lwe, first use", "ddh"])
def test_what_is_timed_is_a_decryption(name):
    answers = fe._decryptions(SMALL[0])[name]()
    assert answers.shape == (2, 2)
    assert 3 <= answers.min() <= answers.max() <= 3 * fe.ENTRY**2
