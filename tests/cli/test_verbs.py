"""What every verb prints, in this process."""

import json
import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

import unequal

RUN_KEYS = {
    "soundness_bits", "hardware_rooted", "trusted_ms", "worker_ms", "offline_ms",
    "bytes_to_worker", "bytes_from_worker", "pads_used", "layers",
}  # fmt: skip


def float32_outputs(model_file, paths):
    pixels = [np.asarray(Image.open(p).resize((6, 8), Image.Resampling.BILINEAR)) for p in paths]
    feeds = np.float32(np.stack(pixels)).transpose(0, 3, 1, 2) / 255
    return ort.InferenceSession(model_file).run(None, {"image": feeds})[0]


def test_version(cloister):
    assert re.fullmatch(r"cloister \d+\.\d+\.\d+\n", cloister("--version").out)


def test_inspect(cloister, model_file):
    ran = cloister("inspect", model_file)
    assert ran.code == 0
    assert ran.err == ""
    for text in ("Conv_0", "linear", "blinded+verified", "nx4x8x6", "total", "trusted memory",
                 "worker learns"):  # fmt: skip
        assert text in ran.out, text


def test_inspect_json(cloister, model_file):
    found = json.loads(cloister("inspect", model_file, "--policy", "verified", "--json").out)
    linear = [node for node in found["nodes"] if node["kind"] == "linear"]
    assert [node["protection"] for node in linear] == ["verified", "verified"]
    assert found["totals"]["parameters"] == 4 * 3 * 9 + 4 + 48 * 5 + 5
    assert linear[0]["bytes_to_worker"] == 2 * 3 * 8 * 6
    assert linear[0]["bytes_from_worker"] == 4 * 4 * 8 * 6
    assert linear[0]["flops"] == 2 * 4 * 8 * 6 * 27
    assert found["totals"]["pad_bytes"] == 0
    assert found["unsupported"] == []


def test_run(cloister, model_file, pictures, tmp_path):
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\neel\n")
    ran = cloister(
        "run", model_file, *pictures, "--top", 2, "--labels", tmp_path / "labels.txt",
        "--out", tmp_path / "out.npz",
    )  # fmt: skip
    assert ran.code == 0, ran
    assert ran.err == ""
    for path in pictures:
        assert str(path) in ran.out
    assert ran.out.count(" %") == 2 * len(pictures)
    for text in ("3 inputs, policy slalom", "pads used 3 (inline", "2^-50.4", "hardware rooted: no",
                 "calibrated on the inputs themselves", "worker\n    learns  "):  # fmt: skip
        assert text in ran.out, text
    expected = float32_outputs(model_file, pictures)
    (got,) = np.load(tmp_path / "out.npz").values()
    assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("policy", ["slalom", "verified", "blinded", "enclave", "open"])
def test_run_json(cloister, model_file, pictures, policy):
    ran = cloister("run", model_file, "--policy", policy, "--json", *pictures)
    assert ran.code == 0, ran
    assert ran.err == ""
    found = json.loads(ran.out)
    assert set(found["report"]) >= RUN_KEYS
    assert found["report"]["pads_used"] == (3 if policy in ("slalom", "blinded") else 0)
    assert (found["report"]["soundness_bits"] or 0) == pytest.approx(
        50.4 if policy in ("slalom", "verified") else 0, abs=0.1
    )
    assert found["claims"]["subject"] == f"policy {policy}"
    assert [output["input"] for output in found["outputs"]] == [str(path) for path in pictures]
    expected = float32_outputs(model_file, pictures)
    for output, row in zip(found["outputs"], expected, strict=True):
        (values,) = output["values"].values()
        np.testing.assert_allclose(values, row, atol=0.02 * np.abs(expected).max())
        assert output["top"][0]["index"] == int(np.argmax(values))


def test_run_takes_arrays_and_globs(cloister, model_file, tmp_path):
    rng = np.random.default_rng(5)
    np.savez(tmp_path / "x.npz", image=rng.random((4, 3, 8, 6)).astype(np.float32))
    np.save(tmp_path / "y.npy", rng.random((3, 8, 6)).astype(np.float32))
    ran = cloister("run", model_file, tmp_path / "x.npz", tmp_path / "y.npy", "--json")
    names = [output["input"].rsplit("/", 1)[1] for output in json.loads(ran.out)["outputs"]]
    assert names == ["x.npz[0]", "x.npz[1]", "x.npz[2]", "x.npz[3]", "y.npy"]


def test_compare(cloister, model_file, pictures):
    ran = cloister("compare", model_file, *pictures)
    assert ran.code == 0, ran
    for text in ("Conv_0", "headroom bits", "clipped", "top-1 agreement: 100.00 %"):
        assert text in ran.out, text
    found = json.loads(cloister("compare", model_file, "--json", *pictures).out)
    assert [layer["clipped"] for layer in found["layers"]] == [0, 0]
    assert all(0 < layer["relative_error"] < 0.01 for layer in found["layers"])
    assert all(layer["activation_bits"] == 12 for layer in found["layers"])
    assert found["top1_agreement"] == 1.0


@pytest.mark.filterwarnings("default::cloister.errors.PrecisionWarning")
def test_fewer_bits_lose_accuracy(cloister, model_file, pictures):
    bits = ("--weight-bits", 5, "--activation-bits", 5)
    ran = cloister("compare", model_file, *bits, "--json", *pictures)
    assert ran.err.startswith("warning: node "), ran.err
    assert ran.err.count("\n") == 1
    coarse = json.loads(ran.out)["layers"][0]
    fine = json.loads(cloister("compare", model_file, "--json", *pictures).out)
    assert coarse["relative_error"] > 10 * fine["layers"][0]["relative_error"]


@pytest.fixture
def columns(tmp_path):
    """A table whose columns differ in scale, its model, and other rows of the same kind."""
    model = unequal.table()
    onnx.save(model, tmp_path / "table.onnx")
    for seed, name in enumerate(("rows.npy", "typical.npy")):
        np.save(tmp_path / name, unequal.samples(model, 9, seed)["x"])
    return tmp_path / "table.onnx", tmp_path / "rows.npy", tmp_path / "typical.npy"


@pytest.mark.filterwarnings("default::cloister.errors.PrecisionWarning")
def test_inputs_that_are_hidden_give_the_weights_no_scales(cloister, columns, tmp_path):
    """The worker sees the weights, so scales come from samples named as such, or not at all."""
    model, rows, typical = columns
    asked = ("run", model, rows, "--json", "--out", tmp_path / "y.npz")
    own = cloister(*asked)
    assert own.code == 0
    assert own.err.startswith("warning: node 'Gemm_0'")
    assert own.err.count("\n") == 1
    assert "powers of two" not in str(json.loads(own.out)["claims"])
    shown = cloister(*asked, "--policy", "verified")
    named = cloister(*asked, "--calibration", typical)
    assert shown.err == ""
    for ran in (shown, named):
        # Rows may lie outside the range of the typical ones, which is another matter.
        assert "fixed-point output" not in ran.err
        assert "powers of two" in str(json.loads(ran.out)["claims"])
    session = ort.InferenceSession(model)
    (exact,) = session.run(None, {"x": np.load(rows)})
    (found,) = np.load(tmp_path / "y.npz").values()
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


def test_clipping_is_counted(cloister, model_file, pictures, tmp_path):
    np.save(tmp_path / "dark.npy", np.full((1, 3, 8, 6), 0.1, np.float32))
    calibrated = ("--calibration", tmp_path / "dark.npy")
    found = json.loads(cloister("compare", model_file, *calibrated, "--json", *pictures).out)
    assert found["layers"][0]["clipped"] > 0.8 * found["layers"][0]["activations"]
    assert found["calibration"] == "calibrated on 1 sample of --calibration"


def test_run_says_what_is_clipped(cloister, refused, model_file, pictures, tmp_path):
    np.save(tmp_path / "dark.npy", np.full((1, 3, 8, 6), 0.1, np.float32))
    calibrated = ("--calibration", tmp_path / "dark.npy")
    command = ("run", model_file, *calibrated, "--out", tmp_path / "out.npz", "--json")
    ran = cloister(*command, *pictures)
    assert ran.code == 0, ran
    (line,) = ran.err.splitlines()
    assert line.startswith("warning: 3 of 3 inputs (the first: 0) lie outside the calibrated range")
    assert "% in layer 'Conv_0'" in line
    found = json.loads(ran.out)
    assert line == f"warning: {found['warning']}"
    assert found["report"]["inputs_beyond"] == [0, 1, 2]
    assert found["report"]["layers"][1]["clipped"] > 0.8 * found["report"]["layers"][1]["quantised"]
    silent = cloister(*command, "--on-clip", "ignore", *pictures)
    assert (silent.code, silent.err) == (0, "")
    assert json.loads(silent.out)["warning"] is None
    (tmp_path / "out.npz").unlink()
    message = refused(*command, "--on-clip", "raise", *pictures)
    assert message == f"error: {found['warning']}; nothing was released"
    assert not (tmp_path / "out.npz").exists()


def test_pads(cloister, refused, model_file, other_model_file, pictures, tmp_path):
    store = (tmp_path / "pads", "--key", tmp_path / "key")
    made = cloister(
        "pads", "make", model_file, "--count", 4, *store, "--calibration", pictures[0].parent
    )
    assert made.code == 0, made
    assert "4 pad sets made, 4 ready" in made.out
    # Once more: the store is full already, and its own calibration makes the same plan.
    assert "0 pad sets made, 4 ready" in cloister(
        "pads", "make", model_file, "--count", 4, *store
    ).out  # fmt: skip
    pads = ("--pads", tmp_path / "pads", "--key", tmp_path / "key")
    ran = cloister("run", model_file, *pads, "--json", *pictures)
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert (found["report"]["pads_used"], found["report"]["offline_ms"]) == (3, 0.0)
    assert found["report"]["pads_from"] != "inline"
    status = json.loads(cloister("pads", "status", *store, "--json").out)
    assert status["ready"] == 1
    assert "made by the trusted side" in cloister("pads", "status", *store).out
    assert status["made_by"] == ""
    assert "pad" in refused("run", model_file, *pads, *pictures)
    message = refused("run", other_model_file, *pads, pictures[0])
    assert "plan" in message
    filled = cloister("pads", "make", model_file, "--count", 2, *store)
    assert "1 pad sets made, 2 ready" in filled.out
