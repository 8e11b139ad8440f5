"""Every benchmark runs, on little, and what its JSON claims about Cloister is true."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest

import cloister.base._native as native
from attest import cases
from benchmarks import ROOT, attest, attested_session, meter_kills, pad_kills
from benchmarks.__main__ import NAMES, main
from benchmarks.networks import build

ENVIRONMENT = {"cpu", "cpu_flags", "isa", "versions", "gpu", "git_commit"}
SMALL = ("--model", "lenet5", "--repeats", 1)
# Published counts; where the original has batch normalisation, its two trained vectors per
# convolution are one bias here: 4,800 channels in ResNet-18, 26,560 in ResNet-50, 75,712 in
# ResNet-152, 10,944 in MobileNet v1 and 17,056 in MobileNet v2.
PARAMETERS = {
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512 - 4_800,
    "resnet50": 25_557_032 - 26_560,
    "resnet152": 60_192_808 - 75_712,
    "mobilenet_v1": 4_231_976 - 10_944,
    "mobilenet_v2": 3_504_872 - 17_056,
    "lenet5": 61_706,
    "mnist_cnn": 1_199_882,
}


def run(*arguments, code=0):
    """A benchmark in a process of its own: some set the instruction set, or fork."""
    words = [sys.executable, "-P", "-m", "benchmarks", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "CLOISTER_DATA"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def measured(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "lenet5.onnx"
    onnx.save(build("lenet5"), path)
    return path


def test_the_names_are_listed_and_wrong_ones_refused():
    for done in (run(), run("--help"), run("nothing", code=2)):
        lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines] == list(NAMES)
        assert all(line.endswith((".", "?")) for line in lines)
    assert "no benchmark model 'vgg17'" in run("inference", "--model", "vgg17", code=1).stderr
    assert "--repeats" in run("layers", "--repeats", 0, code=1).stderr


def test_every_benchmark_is_tested_here():
    assert {f"test_{name}" for name in NAMES} <= set(globals())


def test_what_speaks_against_cloister_is_the_exit_code(monkeypatch):
    found = {"pads_used_twice": 1, "times_the_store_did_not_open": 0}
    monkeypatch.setattr(pad_kills, "measure", lambda: found)
    assert main(["pad_kills", "--json"]) == 1
    found["pads_used_twice"] = 0
    assert main(["pad_kills"]) == 0


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_network_has_the_published_number_of_parameters(name):
    model = build(name)
    assert sum(math.prod(t.dims) for t in model.graph.initializer if t.dims) == PARAMETERS[name]


def test_accuracy(data):
    (row,) = measured("accuracy", "--data", data, "--only", "resnet20_cifar10", "--limit", 20)
    assert row["inputs"] == 20
    assert row["agreement"] >= 0.95
    assert abs(row["plain_top1"] - row["private_top1"]) <= 0.05
    assert row["soundness_bits"] > 50


def test_attest(monkeypatch):
    monkeypatch.setattr(cases, "GENUINE", [c for c in cases.GENUINE if c.name == "sgx"])
    found = attest.measure(mutations=20, seconds=1)
    assert found["flips"]["sgx"] == {"bytes": 1014, "unnoticed": 0}
    assert found["judged_apart"] == dict.fromkeys(("tdx/tdx_quote", "sgx/sgx_quote"), 0)
    assert found["noise"]["tried"] > 10
    assert attest.faults(found) == 0
    assert attest.faults({**found, "unnoticed": 1}) == 1


def test_attested_session(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = attested_session.measure(repeats=2, mib=2)
    assert set(found["handshake_ms"]) == {"verifier", "prover"}
    assert {"sev-snp", "tdx", "sgx", "nitro"} <= set(found["verify_ms"])
    assert [row["bytes"] for row in found["records"]] == [4096, 1 << 20, 2 << 20]
    good = {**found, "handshake_ms": {"verifier": 4.9, "prover": 1.0}}
    good["records"] = [{"bytes": 1, "seal_gb_s": 1.1, "open_gb_s": 1.1}]
    assert attested_session.faults(good) == 0
    good["handshake_ms"]["prover"] = 5.1
    good["records"][0]["open_gb_s"] = 0.9
    assert attested_session.faults(good) == 2


def test_audit_models(data, tmp_path):
    rows = measured("audit_models", "--data", data, "--out", tmp_path, "--quick")
    assert [row["model"] for row in rows] == ["lenet", "faces"]
    assert rows[0]["accuracy"] > 0.9
    for row in rows:
        content = (tmp_path / f"{row['model']}.onnx").read_bytes()
        assert row["sha256 of the file"] == hashlib.sha256(content).hexdigest()
    with np.load(tmp_path / "faces.npz") as found:
        assert {name: found[name].shape for name in found} == dict.fromkeys(
            ("train_images", "test_images"), (200, 56, 46)
        )


def test_audits(tmp_path):
    kept = ROOT / "docs" / "audits"
    shutil.copytree(kept, tmp_path / "audits")
    rows = measured("audits", "--out", tmp_path / "audits")
    assert [row["audit"] for row in rows] == sorted(p.parent.name for p in kept.glob("*/README.md"))
    for page in kept.rglob("README.md"):
        assert (tmp_path / "audits" / page.relative_to(kept)).read_text() == page.read_text()


def test_authority_kills():
    found = measured("authority_kills", "--kills", 5, "--clients", 3, "--samples", 2000)
    assert found["answers_held"] > 0
    assert found["samples_with_more_held_than_recorded"] == 0
    assert found["samples_beyond_budget"] == 0
    assert found["samples_with_answers_not_on_record"] == 0


def test_authority_rate():
    found = measured("authority_rate", "--seconds", 0.3, "--clients", 2)
    assert found["requests"] > 0
    assert found["median_ms"] <= found["p99_ms"]
    assert set(found["environment"]) == ENVIRONMENT


def test_encrypted_prediction():
    pytest.importorskip("torch")
    options = ("--quick", "--epochs", 1, "--repeats", 1, "--only", "frozen")
    (run,) = measured("encrypted_prediction", *options)["runs"]
    assert (run["mode"], run["samples"], run["rank"]) == ("frozen", 256, 49)
    assert run["ledger_is_exact"]
    assert run["ledger_rank"] == 49
    assert run["same_class"] > 0.8
    assert run["server_ratio"] > 0


def test_fe():
    found = measured("fe", "--repeats", 1)
    assert [(row["task"], row["back_end"]) for row in found["products"]] == [
        (task, name)
        for task in ("25-term product", "100x10 . 10x100")
        for name in ("mask", "lwe", "lwe, first use", "ddh")
    ]
    for row in found["products"]:
        assert row["paper_ratio"] == pytest.approx(row["paper_ms"] / row["median_ms"])
    layer = found["layer"]
    assert layer["shape"] == [512, 784, 128]
    assert layer["ratios"][layer["baseline_engine"]] == layer["ratio"]
    assert layer["within_bar"] == (layer["ratio"] <= layer["bar_ratio"])
    assert "Not considered" in found["lwe_security"]
    assert set(found) >= ENVIRONMENT


def test_figure(tmp_path):
    pytest.importorskip("matplotlib")
    row = {"model": "vgg16", "policy": "slalom", "ratio": 21.04, "cpu": "Some CPU", "isa": "avx2",
           "threads": 1, "batch": 1, "weights": "random, seeded"}  # fmt: skip
    old, new, other = (tmp_path / f"{name}.json" for name in ("old", "new", "other"))
    old.write_text(json.dumps({**row, "ratio": 3.0}))
    new.write_text(json.dumps({"results": [row, {**row, "model": "vgg19", "policy": "open"}]}))
    other.write_text(json.dumps({"ratio": 1.0, "layers": []}))
    drawing = tmp_path / "ratios.svg"
    assert measured("figure", old, new, other, "--out", drawing) == [
        {"model": "vgg16", "policy": "slalom", "ratio": 21.04, "published": [10.7, 10.7]},
        {"model": "vgg19", "policy": "open", "ratio": 21.04, "published": None},
    ]
    for text in ("21.0x", "10.7x", "vgg16: private + verified", "Some CPU (avx2)"):
        assert text in drawing.read_text()
    assert "no results" in run("figure", other, code=1).stderr


@pytest.mark.parametrize("batch", [1, 8])
def test_first_request(batch):
    """A session that was entered has populated what its requests use."""
    found = measured("first_request", *SMALL, "--batch", batch)
    assert found["ratio"] == found["first_ms"] / found["steady_ms"] > 0
    assert found["page_faults_first"] < 400
    assert found["page_faults_steady"] <= found["page_faults_first"]
    assert found["entered_ms"] > 0


def test_floor(tmp_path):
    ceilings = tmp_path / "ceilings.json"
    level = {"read": 100.0, "write": 100.0}
    rates = {"gb_per_s": {"L3": level, "memory": level}, "ghz": 3.0,
             "per_cycle": {"ifma": 2.0, "add": 4.0}}  # fmt: skip
    ceilings.write_text(json.dumps(rates))
    found = measured("floor", "--ceilings", ceilings, "--model", "lenet5")
    assert found["ceilings"] == rates
    assert [row["policy"] for row in found["floors"]] == ["verified", "blinded", "slalom"]
    for row in found["floors"]:
        assert row["floor_ms"] == max(row["bytes_ms"], row["instructions_ms"]) > 0


@pytest.mark.parametrize("target", ["evidence", "bundles", "tickets", "handshake", "broker"])
def test_fuzz_attested(target, tmp_path):
    given = ("--target", target, "--minutes", 0.001, "--seed", 7, "--keep", tmp_path)
    found = measured("fuzz_attested", *given)
    assert found["findings"] == 0
    assert found["cases"] == sum(row["cases"] for row in found["kinds"]) == 100
    assert found["target"] == target


def test_fuzz_attested_refuses_other_targets():
    assert "choose evidence, bundles" in run("fuzz_attested", "--target", "x", code=1).stderr


def test_fuzz_loaders(tmp_path):
    found = measured("fuzz_loaders", "--minutes", 0.001, "--keep", tmp_path)
    assert found["files"] > 0
    assert (found["foreign_errors"], found["kinds"]) == (0, [])


def test_inference():
    """ONNX Runtime and PyTorch must agree, or nothing is measured."""
    pytest.importorskip("torch")
    arguments = ("--model", "lenet5", "--model", "mobilenet_v2", "--repeats", 1, "--batch", 2)
    rows = measured("inference", *arguments)["results"]
    assert [row["model"] for row in rows] == ["lenet5", "mobilenet_v2"]
    for row in rows:
        floats = {name: row["engines"][name]["ms"] for name in ("onnxruntime", "torch")}
        assert row["baseline_ms"] == min(floats.values()) == floats[row["baseline_engine"]]
        assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["trusted_ms"])
        assert row["int8_ms"] == row["engines"]["onnxruntime int8"]["ms"]
        assert row["int8_ratio"] == pytest.approx(row["int8_ms"] / row["trusted_ms"])
        assert 0 < row["serving_peak_bytes"] <= row["trusted_peak_bytes"]
        assert (row["weights"], row["batch"]) == ("random, seeded", 2)
        assert row["policy"] == "slalom"
        assert row["soundness_bits"] > 50
        assert set(row) >= ENVIRONMENT


def test_pads_from_a_store(tmp_path):
    found = measured(
        "inference", *SMALL, "--repeats", 1, "--no-int8", "--no-memory", "--pads", tmp_path
    )
    assert found["store_ratio"] == pytest.approx(found["store_ms"] / found["trusted_ms"])
    assert found["store_min_ratio"] == pytest.approx(
        found["store_min_ms"] / found["trusted_min_ms"]
    )
    assert not list(tmp_path.iterdir())


def test_compiled():
    """That module and ONNX Runtime compute the same is checked before they are timed."""
    found = measured("compiled", *SMALL, "--target", "wasm")
    assert found["ratio"] == pytest.approx(found["compiled_ms"] / found["onnxruntime_ms"])
    assert found["to_native"] == pytest.approx(found["compiled_ms"] / found["native_ms"])
    assert found["cpu_ratio"] == pytest.approx(
        found["compiled_cpu_ms"] / found["onnxruntime_cpu_ms"]
    )
    assert (found["build"], found["contraction"]) == ("wasm", "off")
    assert set(found) >= ENVIRONMENT
    portable = measured("compiled", *SMALL, "--build", "native-x86-64")
    assert (portable["build"], portable["contraction"]) == ("native-x86-64", "fma")


def test_layers():
    """That both sides compute the same layer is checked before it is timed."""
    found = measured("layers", "--only", "5_1", "--repeats", 1)
    assert [row["layer"] for row in found["layers"]] == ["conv5_1"]
    for key in ("ort_ms", "ring_ms", "plain_ms"):
        assert found[key] == pytest.approx(sum(row[key] for row in found["layers"]))
    assert found["ratio"] == pytest.approx(found["ring_ms"] / found["ort_ms"])
    assert found["layers"][0]["on_tiles"] == (found["isa"] == "amx")
    portable = measured("layers", "--only", "fc8", "--repeats", 1, "--isa", "portable")
    assert portable["isa"] == "portable"
    assert not portable["layers"][0]["on_tiles"]
    assert "this machine offers portable" in run("layers", "--isa", "sse", code=1).stderr
    assert run("layers", "--only", "fc8", "--repeats", 1).stdout.count("fc8") == 1


def test_lies(model_file):
    (row,) = measured("lies", model_file, "--lies", 20)
    assert (row["lies"], row["accepted"]) == (20, 0)


def test_memory(model_file):
    found = measured("memory", model_file)
    (row,) = found["results"]
    assert row["stated_over_measured"] == pytest.approx(
        row["stated_bytes"] / row["trusted_peak_bytes"]
    )
    assert 0.5 < row["stated_over_measured"] < 2
    assert [stage["step"] for stage in row["stages"]][-1] == "requests answered"
    assert set(found) >= ENVIRONMENT


def test_meter_kills():
    found = measured("meter_kills", "--kills", 25, "--seed", 7)
    assert found["kills"] >= 25
    assert found["outputs_spent"] >= found["outputs_released"] > 0
    assert meter_kills.faults(found) == 0
    for name in meter_kills.FAULTS:
        assert meter_kills.faults({**found, name: 1}) == 1


def test_broker_kills():
    found = measured("broker_kills", "--kills", 5, "--runtimes", 2)
    assert found["releases_held"] > 0
    assert found["advances"] > 0


def test_pad_kills():
    found = measured("pad_kills", "--kills", 10)
    assert found["kills"] == 10
    assert (found["pads_used_twice"], found["times_the_store_did_not_open"]) == (0, 0)


def test_pads():
    found = measured("pads", *SMALL)
    assert found["local_ratio"] == pytest.approx(found["local_ms"] / found["baseline_ms"])
    total = found["shared_trusted_ms"] + found["shared_worker_ms"]
    assert found["shared_total_ms"] == pytest.approx(total)
    assert found["shared_trusted_share"] == pytest.approx(found["shared_trusted_ms"] / total)
    assert min(found["storage_bytes"], found["traffic_bytes"]) > 0
    assert "needs no pads" in run("pads", *SMALL, "--policy", "verified", code=1).stderr


def test_pads_of_a_maker():
    found = measured("pads", *SMALL, "--maker")
    for ending in ("", "_tls"):
        trusted, maker = found[f"trusted_ms{ending}"], found[f"maker_ms{ending}"]
        assert found[f"trusted_share{ending}"] == pytest.approx(trusted / (trusted + maker))
        assert trusted > 0
        assert maker > 0
    assert "blinds nothing" in run("pads", *SMALL, "--maker", "--policy", "verified", code=1).stderr
    assert set(found) >= ENVIRONMENT


def test_passes():
    if "avx2" not in native.available_isas():
        pytest.skip("passes are measured on processors with AVX2")
    found = measured("passes", *SMALL)
    assert set(found["ms"]) == set(found["fastest_ms"])
    assert all(found["fastest_ms"][name] <= found["ms"][name] for name in found["ms"])
    assert set(found) >= ENVIRONMENT


def test_planner():
    found = measured("planner", *SMALL, "--rounds", 1, "--bar", 1e6)
    assert [row["plan"] for row in found["plans"]] == [
        "slalom", "verified", "blinded", "enclave", "origami", "origami-prefix", "origami-none",
        "slalom, placed by the planner",
    ]  # fmt: skip
    for row in found["plans"]:
        assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1)
        assert row["error"] == row["worst_round"]
    assert found["worst_error"] == max(abs(row["error"]) for row in found["plans"])
    wrong = run("planner", *SMALL, "--until", "conv_99", code=1).stderr
    assert "--until conv_99: choose one of" in wrong
    assert set(found) >= ENVIRONMENT


def test_random_graphs(tmp_path):
    found = measured("random_graphs", "--examples", 3, "--keep", tmp_path)
    assert 0 < found["models"] <= 3
    assert sum(found["computed"].values()) + sum(found["refused"].values()) > found["models"]
    assert found["faults"] == []


def test_roundtrip():
    found = measured("roundtrip", *SMALL, "--batch", 3)
    assert [(row["lanes"], row["workers"], row["micro_batch"]) for row in found["calls"]] == [
        (1, 1, 3), (2, 1, 2), (2, 2, 2),
    ]  # fmt: skip
    for row in found["calls"]:
        assert row["ratio"] == pytest.approx(row["call_ms"] / row["worker_alone_ms"])
        assert row["images_per_s"] == pytest.approx(3e3 / row["call_ms"])
    assert set(found) >= ENVIRONMENT


def test_split():
    pytest.importorskip("torch")
    given = ("--until", "pool1", "--until", "averagepool_5", "--batch", 1, "--batch", 2)
    found = measured("split", *SMALL, *given, "--integrity", "all")
    assert [(row["batch"], row["node"], row["integrity"]) for row in found["results"]] == [
        (batch, node, integrity)
        for batch in (1, 2)
        for node in ("averagepool_2", "averagepool_5")
        for integrity in ("full", "prefix", "none")
    ]
    for row in found["results"]:
        assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["origami_ms"])
        assert row["gain"] == pytest.approx(row["slalom_ms"] / row["origami_ms"])
        assert (row["soundness_bits"] is None) == (row["integrity"] == "none")
    assert set(found) >= ENVIRONMENT
    one = measured("split", *SMALL, "--until", "pool1")
    assert (one["until"], one["integrity"], one["batch"]) == ("pool1", "full", 1)
    assert set(one) >= ENVIRONMENT
    few = run("split", "--model", "lenet5", "--until", "pool3", code=1).stderr
    assert "the model has 2 pooling layers" in few
    other = run("split", "--model", "lenet5", "--integrity", "some", code=1).stderr
    assert "choose full, prefix, none, all" in other


def test_training():
    pytest.importorskip("torch")
    found = measured("training", "--quick", "--steps", 2, "--epochs", 1, "--only", "mlp")
    assert [(step["model"], step["mode"]) for step in found["steps"]] == [
        ("lenet5", "paper"), ("lenet5", "trusted"), ("mlp", "paper"), ("mlp", "trusted"),
    ]  # fmt: skip
    assert all(step["data"].startswith("random images") for step in found["steps"])
    assert [(one["model"], one["mode"]) for one in found["runs"]] == [("mlp", "paper")]
    assert found["paper"]["encrypted_h"] == 57
    assert set(found["environment"]) == ENVIRONMENT


def test_training_follows_the_plain_one(data):
    pytest.importorskip("torch")
    quick = ("--quick", "--steps", 2, "--data", data)
    (one,) = measured("training", *quick, "--only", "heart mlp trusted")["runs"]
    assert len(one["accuracy"]) == len(one["accuracy_plain"]) == 3
    assert abs(one["difference_points"][-1]) < 3


def test_transport():
    """An echo that differs from its message ends the benchmark."""
    found = measured("transport", "--largest", 4096, "--repeats", 1, "--seconds", 0.002)
    assert [(row["link"], row["message_bytes"]) for row in found["links"]] == [
        (link, size) for size in (1024, 4096) for link in ("in process", "shared memory", "gRPC")
    ]
    for row in found["links"]:
        assert row["round_trips_per_s"] == pytest.approx(1e6 / row["round_trip_us"])
    assert set(found) >= ENVIRONMENT
