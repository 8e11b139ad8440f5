"""`cloister bench inference`, and what it measures with."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import nets
from cloister.cli.speed import PACKAGES, OrtBaseline, PreparedPads
from cloister.cli.timing import Timing, interleaved
from cloister.errors import InputError, PadsExhausted
from cloister.trusted import tuning
from trusted.test_session import plan_of

ESCAPE = "\x1b]0;all is checked\x07"


@pytest.mark.parametrize("policy", ["slalom", "verified", "blinded", "enclave", "open"])
def test_inference_of_a_model(cloister, model_file, policy):
    ran = cloister(
        "bench", "inference", model_file, "--policy", policy, "--repeats", 2, "--batch", 2,
        "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["ratio"] == pytest.approx(found["baseline_ms"] / found["trusted_ms"])
    assert found["baseline_ms"] == found["engines"][found["baseline_engine"]]["ms"]
    assert (found["policy"], found["batch"], found["repeats"]) == (policy, 2, 2)
    assert found["trusted_min_ms"] <= found["trusted_ms"] <= found["trusted_max_ms"]
    assert (found["offline_ms"] > 0) == (policy in ("slalom", "blinded"))
    assert set(found["versions"]) == {"python", *PACKAGES}
    assert {"cpu", "cpu_flags", "isa", "worker_ms", "soundness_bits"} <= set(found)


def test_inference_for_people(cloister, model_file):
    ran = cloister("bench", "inference", model_file, "--repeats", 1)
    assert ran.code == 0, ran
    for text in ("policy slalom", "plain, ONNX Runtime", "trusted side", "pads", "ratio"):
        assert text in ran.out


def test_what_cannot_be_measured_is_said_in_one_line(refused, model_file, tmp_path):
    assert "none.onnx" in refused("bench", "inference", "none.onnx")
    assert "unknown policy 'slaloom'" in refused(
        "bench", "inference", model_file, "--policy", "slaloom"
    )
    net = nets.Net()
    onnx.save(net.model(net.op("Add", net.input("x", 3), net.input("y", 3))), tmp_path / "2.onnx")
    assert "one input" in refused("bench", "inference", tmp_path / "2.onnx")


def test_interleaved_runs_take_turns_after_one_that_is_not_timed():
    order = []
    timings = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        repeats=2,
        before={"b": lambda: order.append("before")},
    )
    assert order == ["a", "before", "b"] * 3
    assert {len(t.walls_s) for t in timings.values()} == {2}


def test_medians_and_spreads():
    timing = Timing((1.0, 4.0, 2.0), (0.5, 0.5, 1.0))
    assert (timing.wall_s, timing.cpu_s, timing.wall_spread) == (2.0, 0.5, 1.5)


def test_prepared_pads_are_given_once():
    pads = PreparedPads(plan_of(nets.chain()))
    pads.fill(3)
    pads.fill(2)
    first = pads.take(2)
    with pytest.raises(PadsExhausted):
        pads.take(2)
    second = pads.take(1)
    assert len({pad.pad_id for pad in (*first, *second)}) == 3
    pads.recycle([*first, *second])
    pads.erase()


def gathers(index, *, domain=""):
    """Picks a row that is not there, or has an operator that nobody knows."""
    net = nets.Net()
    rows = net.op("Gather", net.constant(np.eye(3, dtype=np.float32)), net.constant(index))
    model = net.model(net.op("Add", net.input("x", 3), rows))
    model.graph.node[0].name = ESCAPE
    if domain:
        model.graph.node[0].domain = domain
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return model


def test_what_onnx_runtime_refuses_is_one_printable_error(capfd):
    x = np.ones((1, 3), np.float32)
    with pytest.raises(InputError, match="ONNX Runtime") as of_run:
        OrtBaseline(gathers(np.array(7)), 1).run(x)
    with pytest.raises(InputError, match="does not take the model") as of_load:
        OrtBaseline(gathers(np.array(0), domain=f"a.b{ESCAPE}"), 1)
    assert all(str(caught.value).isprintable() for caught in (of_run, of_load))
    assert capfd.readouterr() == ("", "")


def test_tune_prints_what_each_candidate_gives_and_keeps_the_best(cloister, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    best = replace(tuning.defaults(), tile=1024)
    choices = tuning.defaults(), best, replace(tuning.defaults(), far_tiles=3)
    measured = [
        tuning.MeasuredChoice(one, ms) for one, ms in zip(choices, (1.0, 0.5, 0.7), strict=True)
    ]
    monkeypatch.setattr(tuning, "calibrate", lambda budget_s: measured)
    ran = cloister("bench", "tune", "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert [row["ms"] for row in found["candidates"]] == [1.0, 0.5, 0.7]
    assert [row["chosen"] for row in found["candidates"]] == [False, True, False]
    assert tuning.kept() == best
    assert Path(found["kept"]).parent == tmp_path / "cloister"
    assert set(asdict(best)) <= {*found, *found["candidates"][0]}
    (chosen,) = (line for line in cloister("bench", "tune").out.splitlines() if "chosen" in line)
    assert chosen.startswith("1,024")
