import json

import pytest

from cloister.cli.bench.prepared import PadsAhead
from cloister.cli.bench.roundtrip import COLUMNS
from cloister.errors import PadsExhausted
from trusted.test_session import nets, plan_of


def test_calls_by_lanes_and_workers(cloister):
    ran = cloister(
        "bench", "roundtrip", "--model", "lenet5", "--batch", 3, "--lanes", 2, "--repeats", 1,
        "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    rows = found["calls"]
    assert [(row["lanes"], row["workers"], row["micro_batch"]) for row in rows] == [
        (1, 1, 3),
        (2, 1, 2),
        (2, 2, 2),
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["call_ms"] / row["worker_alone_ms"])
        assert row["images_per_s"] == pytest.approx(3e3 / row["call_ms"])
        assert row["trusted_ms"] > 0
    for key in ("cpu", "cpu_flags", "isa", "gpu", "versions", "git_commit", "cores"):
        assert key in found


def test_for_people_and_in_the_clear(cloister):
    ran = cloister(
        "bench", "roundtrip", "--model", "lenet5", "--batch", 1, "--lanes", 1, "--workers", 1,
        "--repeats", 1, "--policy", "verified",
    )  # fmt: skip
    assert ran.code == 0, ran
    for column in COLUMNS:
        assert column in ran.out


def test_pads_made_ahead_are_given_once():
    pads = PadsAhead(plan_of(nets.chain()))
    pads.fill(3)
    pads.fill(2)
    first = pads.take(2)
    with pytest.raises(PadsExhausted):
        pads.take(2)
    second = pads.take(1)
    assert len({pad.pad_id for pad in (*first, *second)}) == 3
    pads.recycle([*first, *second])
    pads.erase()
