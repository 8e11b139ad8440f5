"""`cloister run` of a bundle: the vendor's answers, and no weight in anything that it leaves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cloister.base.rng import SystemRandom
from cloister.bundle.bundle_keys import create_keys
from cloister.bundle.compiled_module import CompiledModule
from cloister.examples.digits_demo import model_file
from cloister.examples.hidden_search import HiddenWords
from cloister.graph.hidden import hide
from cloister.graph.onnx.load import load
from cloister.trusted.query_counter import QueryCounter

DIGITS = Path(__file__).parents[2] / "examples/digits"
RUN = ("run", "digits.bundle", "digits", "--vendor", "vendor/vendor.pub", "--key",
       "vendor/content.key", "--counter", "queries", "--json")  # fmt: skip


@pytest.fixture
def customer(cloister, tmp_path, monkeypatch):
    """A folder with a bundle; `slalom` before its hidden layers."""
    pytest.importorskip("ziglang")
    monkeypatch.chdir(tmp_path)
    with model_file() as path:
        shutil.copy(path, "digits.onnx")
    shutil.copytree(DIGITS, "digits")
    create_keys(Path("vendor"), rng=SystemRandom())
    for command in (
        ("plan", "digits.onnx", "--last", 2, "--queries", 20, "--calibration", "digits",
         "--out", "vendor/digits.plan"),
        ("bundle", "seal", "vendor/digits.module", "--plan", "vendor/digits.plan", "--key",
         "vendor/content.key", "--signer", "vendor/vendor.key", "--out", "digits.bundle"),
    ):  # fmt: skip
        assert cloister(*command).code == 0
    return tmp_path


def secret():
    hidden = hide(load("digits.onnx"), last=2).hidden
    return HiddenWords(hidden, CompiledModule.load(Path("vendor/digits.module")).weights)


def test_a_run_gives_the_answers_of_the_model(cloister, customer):
    ran = cloister(*RUN)
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["report"]["policy"] == "slalom+ennclave"
    assert found["report"]["soundness_bits"] > 50
    plain = json.loads(
        cloister("run", "digits.onnx", "digits", "--policy", "enclave", "--json").out
    )
    for one, other in zip(found["outputs"], plain["outputs"], strict=True):
        (scores,), (wanted,) = one["values"].values(), other["values"].values()
        np.testing.assert_allclose(scores, wanted, atol=0.1)


def test_a_run_leaves_no_weight_behind(cloister, customer):
    words = secret()
    ran = cloister(*RUN, "--out", "out.npz", "--transcript", "t.npz")
    assert ran.code == 0, ran
    left = [path for path in customer.iterdir() if path.is_file() and path.suffix != ".onnx"]
    assert {path.name for path in left} == {"digits.bundle", "queries", "out.npz", "t.npz"}
    parts = [ran.out.encode(), ran.err.encode(), *(path.read_bytes() for path in left)]
    with np.load("t.npz") as transcript:
        parts += [array.tobytes() for array in transcript.values()]
    assert words.search("what a run left", parts).hidden_words == 0
    copy = b"x" + Path("vendor/digits.module/weights.bin").read_bytes()
    assert words.search("a copy", [copy]).hidden_words > 1000


@pytest.mark.parametrize(("engine", "build"), [("wasm", "wasm"), ("onnxruntime", "onnx")])
def test_an_engine_without_a_build_is_refused_and_not_charged(cloister, customer, engine, build):
    ran = cloister(*RUN, "--engine", engine)
    assert ran.code == 2
    message = ran.err.splitlines()[-1]
    assert f"has no build {build}" in message
    assert "choose another engine, or ask its vendor for that build" in message
    found = json.loads(cloister(*RUN).out)
    assert found["report"]["inputs"] == 10
    digest = CompiledModule.load(Path("vendor/digits.module")).manifest.digest
    assert QueryCounter.open(Path("queries")).used(digest) == 10
