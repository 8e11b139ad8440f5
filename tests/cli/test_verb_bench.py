import json

import pytest

from cloister.cli.bench import app


def test_inference(cloister, model_file):
    ran = cloister(
        "bench", "inference", "--model", model_file, "--repeats", 2, "--batch", 2, "--json"
    )  # fmt: skip
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["ratio"] == pytest.approx(found["baseline_ms"] / found["trusted_ms"])
    assert found["baseline_engine"] in found["engines"]
    floats = {name: row["ms"] for name, row in found["engines"].items() if "int8" not in name}
    assert found["baseline_ms"] == min(floats.values())
    assert found["int8_ms"] == found["engines"]["onnxruntime int8"]["ms"]
    assert found["int8_ratio"] == pytest.approx(found["int8_ms"] / found["trusted_ms"])
    assert 0 < found["serving_peak_bytes"] <= found["trusted_peak_bytes"]
    assert found["policy"] == "slalom"
    assert found["soundness_bits"] > 50
    assert min(found[key] for key in ("trusted_ms", "offline_ms", "worker_ms")) > 0
    assert (found["batch"], found["repeats"], found["threads"]) == (2, 2, 1)
    for key in ("cpu", "isa", "versions", "weights", "gpu"):
        assert found[key]
    assert {"cpu_flags", "git_commit"} <= set(found)


def test_inference_of_several_policies_with_a_figure(cloister, model_file, tmp_path):
    figure = tmp_path / "ratios.svg"
    ran = cloister(
        "bench", "inference", "--model", model_file, "--repeats", 1, "--policy", "all",
        "--no-int8", "--no-memory", "--figure", figure, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    rows = json.loads(ran.out)["results"]
    assert [row["policy"] for row in rows] == ["slalom", "verified", "blinded", "enclave", "open"]
    for row in rows:
        assert row["int8_ratio"] is None
        assert "trusted_peak_bytes" not in row
        assert f"{row['ratio']:.1f}x" in figure.read_text()


def test_inference_refuses_unknown_policies_before_it_measures(refused, model_file):
    said = refused("bench", "inference", "--model", model_file, "--policy", "slaloom")
    assert "unknown policy 'slaloom'; choose slalom" in said


def test_inference_for_people(cloister, model_file):
    ran = cloister("bench", "inference", "--model", model_file, "--repeats", 1)
    assert ran.code == 0, ran
    for text in ("trusted", "onnxruntime", "ratio", "int8", "peak memory", "GPU"):
        assert text in ran.out


def test_unknown_models(refused):
    assert "vgg16" in refused("bench", "inference", "--model", "vgg17")
    assert "none.onnx" in refused("bench", "inference", "--model", "none.onnx")


def test_layers(cloister, monkeypatch):
    found = {
        "layers": [{"layer": "conv", "ort_ms": 1.0, "ring_ms": 2.0, "ratio": 2.0}],
        "ratio": 2.0,
        "isa": "portable",
    }
    monkeypatch.setattr(app, "bench_layers", lambda **_: found)
    assert json.loads(cloister("bench", "layers", "--json").out) == found
    text = cloister("bench", "layers").out
    assert "conv" in text
    assert "isa: portable" in text


def test_pads(cloister, model_file, refused):
    ran = cloister("bench", "pads", "--model", model_file, "--repeats", 1, "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["local_ratio"] == pytest.approx(found["local_ms"] / found["baseline_ms"])
    total = found["shared_trusted_ms"] + found["shared_worker_ms"]
    assert found["shared_total_ms"] == pytest.approx(total)
    assert found["shared_trusted_share"] == pytest.approx(found["shared_trusted_ms"] / total)
    assert min(found[key] for key in ("shared_worker_ms", "storage_bytes", "traffic_bytes")) > 0
    assert found["workers"] == 2
    text = cloister("bench", "pads", "--model", model_file, "--repeats", 1).out
    for part in ("trusted runtime", "two workers", "storage"):
        assert part in text
    assert "needs no pads" in refused(
        "bench", "pads", "--model", model_file, "--policy", "verified"
    )
