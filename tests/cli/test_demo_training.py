"""`cloister demo training`: every role a process, from end to end."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from cloister.examples import commands
from cloister.wire import process

SEEDED = Path(__file__).parents[1] / "seeded_cloister.py"


def test_two_clinics(cloister, tmp_path, monkeypatch):
    def command(*arguments):
        return process.python(str(SEEDED), *map(str, arguments))

    monkeypatch.setattr(commands, "command", command)
    ran = cloister("demo", "training", "--json", "--out", tmp_path / "demo")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["patients"] == 569
    assert found["accuracy_encrypted"] > 0.85
    assert abs(found["accuracy_trusted"] - found["accuracy_plain"]) < 0.05
    assert found["budget"]["rank_max"] == found["rank"] == found["budget"]["rank_allowed"]
    assert found["budget"]["counts"]["refusals"] == 1
    assert "allowed are 10" in found["refusal"]
    assert (tmp_path / "demo" / "curve.svg").exists()
    secret = [path for end in ("csv", "token") for path in (tmp_path / "demo").glob(f"*.{end}")]
    assert len(secret) == 4 + 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in secret)
