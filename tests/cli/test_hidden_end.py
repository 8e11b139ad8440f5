"""`--last`, `--from`: models whose end is hidden, on the command line."""

import json

import numpy as np
import pytest

from cloister.bundle.compiled_module import CompiledModule
from cloister.plan.plan import Plan
from cloister.trusted.query_counter import QueryCounter

ORT = ("--engine", "onnxruntime")


@pytest.fixture
def run(cloister, model_file, pictures, tmp_path):
    """`cloister run MODEL` on two pictures; the outputs and the document."""

    def run(*more, model=model_file):
        target = tmp_path / "y.npz"
        ran = cloister("run", model, *pictures[:2], "--out", target, "--json", *more)
        assert ran.code == 0, ran
        (found,) = np.load(target).values()
        return found, json.loads(ran.out)

    return run


@pytest.fixture
def exact(run):
    return run("--policy", "enclave")[0]


@pytest.mark.parametrize("policy", ["slalom", "verified", "blinded", "enclave", "ennclave"])
def test_the_last_layer_is_hidden_behind_every_policy(run, exact, policy):
    found, told = run("--policy", policy, "--last", 1, *ORT)
    np.testing.assert_allclose(found, exact, atol=0.03)
    name = policy if policy == "ennclave" else f"{policy}+ennclave"
    assert told["claims"]["subject"] == f"policy {name}"
    assert told["report"]["policy"] == name
    assert (told["report"]["queries_used"], told["report"]["queries_left"]) == (2, None)


def test_the_default_policy_is_the_one_before_a_hidden_end(run):
    assert run("--last", 1, *ORT)[1]["report"]["policy"] == "slalom+ennclave"
    named = run("--policy", "slalom+ennclave", "--last", 1, *ORT)[1]
    assert named["plan_digest"] == run("--last", 1, *ORT)[1]["plan_digest"]


def test_the_native_engine_is_the_default(run, exact):
    """Compiled, started in a process of its own, and near ONNX Runtime's numbers."""
    found, told = run("--policy", "ennclave", "--last", 2)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    assert told["report"]["module_ms"] > 0
    again = run("--policy", "ennclave", "--last", 2)[1]
    assert again["plan_digest"] == told["plan_digest"]


@pytest.mark.parametrize(("answers", "shape"), [
    ("label", (2,)), ("top5", (2, 5)), ("probabilities", (2, 5)), ("all", (2, 5)),
])  # fmt: skip
def test_answers(run, exact, answers, shape):
    found, told = run("--policy", "ennclave", "--last", 1, "--answers", answers, *ORT)
    order = np.argsort(-exact, axis=1)
    assert found.shape == shape
    if answers == "label":
        np.testing.assert_array_equal(found, order[:, 0])
    elif answers == "top5":
        np.testing.assert_array_equal(found, order)
    elif answers == "probabilities":
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    best = [one["top"][0] for one in told["outputs"]]
    assert [guess["index"] for guess in best] == order[:, 0].tolist()
    assert (best[0]["probability"] is None) == (answers in ("label", "top5"))


def test_labels_name_what_a_module_answers(cloister, model_file, pictures, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\nfour\nfive\n")
    given = ("run", model_file, pictures[0], "--last", 1, "--answers", "top5", *ORT)
    ran = cloister(*given, "--labels", names, "--top", 2)
    assert ran.code == 0, ran
    shown = [line.split() for line in ran.out.splitlines()[:4]]
    assert shown[1][0].endswith("a.png") and shown[1][1] in names.read_text()
    assert shown[0] == ["input", "label"] and len(shown[1]) == 2
    assert "hidden part: 1 query answered" in ran.out


def test_from_a_node_on(run, refused, model_file, pictures):
    found = run("--from", "Gemm_4", *ORT)[1]
    assert found["plan_digest"] == run("--last", 1, *ORT)[1]["plan_digest"]
    message = refused("run", model_file, pictures[0], "--from", "nowhere")
    assert "node 'nowhere': the model has none of that name; its last layers: 'Conv_0'" in message


def test_queries_are_counted_in_a_file(cloister, run, refused, model_file, pictures, tmp_path):
    counter = tmp_path / "counter"
    given = ("--last", 1, "--queries", 3, "--counter", counter, *ORT)
    ran = cloister("run", model_file, *pictures[:2], *given)
    assert ran.code == 0 and "is new, so no query was counted before" in ran.err
    assert "2 queries answered, 1 left" in ran.out
    message = refused("run", model_file, *pictures[:2], *given)
    assert "1 of its 3 queries are left, and 2 are asked for; give fewer inputs" in message
    ran = cloister("run", model_file, pictures[0], *given)
    assert (ran.code, ran.err) == (0, "")
    assert "1 query answered, 0 left" in ran.out


# ---- plans and their modules in files


@pytest.fixture
def planned(cloister, model_file, pictures, tmp_path):
    def plan(*more, name="m.plan"):
        path = tmp_path / name
        ran = cloister("plan", model_file, pictures[0].parent, "--out", path, *more, "--json")
        assert ran.code == 0, ran
        return path, json.loads(ran.out)

    return plan


def test_a_plan_and_its_module_are_written(planned, run, exact, tmp_path):
    path, told = planned("--last", 1, "--queries", 8, *ORT)
    plan, module = Plan.load(path), CompiledModule.load(tmp_path / "m.module")
    assert told["module"] == str(tmp_path / "m.module")
    assert told["module_digest"] == module.manifest.digest.hex()
    assert told["plan_digest"] == plan.digest.hex()
    (named,) = plan.modules
    assert (named.digest, named.queries) == (module.manifest.digest, 8)
    assert module.builds["onnx"][-200:] not in path.read_bytes()
    counter = ("--counter", tmp_path / "counter")
    given = ("--policy", "slalom+ennclave", "--module", tmp_path / "m.module", *ORT, *counter)
    found, report = run(*given, model=path)
    np.testing.assert_allclose(found, exact, atol=0.03)
    assert report["report"]["queries_left"] == 6
    assert QueryCounter.open(tmp_path / "counter").used(named.digest) == 2


def test_two_modules_of_one_model_differ_by_their_salt(planned, refused, pictures, tmp_path):
    _, one = planned("--last", 1, *ORT)
    path, other = planned("--last", 1, "--module", tmp_path / "other", *ORT, name="n.plan")
    assert one["module_digest"] != other["module_digest"]
    given = ("run", path, pictures[0], "--policy", "slalom+ennclave", *ORT)
    assert "give the module that the plan was made with" in refused(
        *given, "--module", tmp_path / "m.module"
    )
    assert "its end is hidden in module" in refused(*given)


def test_a_plan_with_a_hidden_end_is_run_by_its_own_policy(planned, refused, pictures, tmp_path):
    path, _ = planned("--last", 1, *ORT)
    given = ("run", path, pictures[0], "--module", tmp_path / "m.module", *ORT)
    message = refused(*given)
    assert "is a plan of policy slalom+ennclave, and slalom is wanted" in message
    assert "give --policy slalom+ennclave" in message


def test_a_plan_is_shown_with_its_module(cloister, model_file, pictures, tmp_path):
    ran = cloister("plan", model_file, pictures[0], "--out", tmp_path / "a.plan", "--last", 1, *ORT)
    assert ran.code == 0, ran
    assert f"{tmp_path / 'a.module'}: module " in ran.out
    assert "weights in modules" in ran.out


def test_pads_are_made_for_the_plan(cloister, planned, refused, model_file, pictures, tmp_path):
    path, _ = planned("--last", 1, *ORT)
    store = (tmp_path / "pads", "--key", tmp_path / "key")
    made = cloister(
        "pads", "make", path, *store, "--count", 3, "--digest", Plan.load(path).digest.hex()
    )
    assert made.code == 0, made
    given = ("--module", tmp_path / "m.module", "--pads", *store, *ORT)
    ran = cloister("run", path, *pictures[:2], *given)
    assert ran.code == 0, ran
    assert "pads used 2 (store" in ran.out
    message = refused(
        "pads", "make", model_file, *store, "--count", 3, "--policy", "slalom+ennclave"
    )
    assert "make its plan with `cloister plan --last N`" in message


@pytest.mark.parametrize("engine", ["native", "wasm"])
def test_compiled_engines(run, exact, engine):
    if engine == "wasm":
        pytest.importorskip("wasmtime")
    found, _ = run("--policy", "enclave", "--last", 2, "--engine", engine)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


# ---- inspect and compare


def test_inspect_shows_a_hidden_end_in_one_line(cloister, planned, model_file):
    given = ("inspect", model_file, "--policy", "slalom", "--last", 1, "--queries", 50)
    ran = cloister(*given)
    assert ran.code == 0, ran
    lines = [line for line in ran.out.splitlines() if line.startswith("hidden part ")]
    assert lines == ["hidden part module: 2 nodes, 245 parameters, 485 flops, 50 queries"]
    found = json.loads(cloister(*given, "--json").out)
    assert found["policy"] == found["claims"]["subject"].removeprefix("policy ")
    assert found["hidden"] == [
        {"node": "module", "nodes": 2, "parameters": 245, "flops": 485, "module": "", "queries": 50}
    ]
    assert "Gemm_4" not in [node["node"] for node in found["nodes"]]
    path, told = planned("--last", 1, *ORT)
    shown = cloister("inspect", path).out
    assert f"hidden part module: module {told['module_digest']}, any number of queries" in shown


@pytest.mark.parametrize("policy", ["slalom", "ennclave"])
@pytest.mark.parametrize("answers", ["all", "label"])
def test_compare_measures_the_hidden_end(cloister, model_file, pictures, policy, answers):
    given = (*pictures, "--policy", policy, "--last", 1, "--answers", answers)
    ran = cloister("compare", model_file, *given, "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert len(found["layers"]) == (policy == "slalom")
    assert found["hidden"]["node"] == "module"
    assert 0 <= found["hidden"]["relative_error"] < 1e-6
    assert found["top1_agreement"] == 1
    assert (found["max_difference"] < 0.05) and (found["max_difference"] > 0) == (answers == "all")
    shown = cloister("compare", model_file, *given)
    assert "hidden part module, on exact inputs: largest error" in shown.out


# ---- what is refused


@pytest.mark.parametrize(("more", "message"), [
    (("--policy", "ennclave"), "--policy ennclave: hides the end of a model; give --last N or"),
    (("--policy", "slalom+ennclave"), "--policy slalom+ennclave: hides the end of a model"),
    (("--answers", "label"), "--answers: is about a hidden end; give --last N or --from NODE"),
    (("--queries", 5), "--queries: is about a hidden end; give --last N or --from NODE"),
    (("--engine", "wasm"), "--engine: policy slalom hides no layers; leave it out"),
    (("--counter", "c"), "--counter: the plan limits no queries; leave it out"),
    (("--module", "m"), "--module: goes with a plan; leave it out"),
    (("--last", 1, "--from", "Gemm_4"), "give the number of its layers, or its first node"),
    (("--last", 3), "the last 3 layers cannot be hidden: the model has 2 layers"),
    (("--last", 2), "no linear node that a worker computes is left before the hidden end"),
    (("--last", 1, "--queries", 5, *ORT), "at most 5 queries: give --counter FILE"),
    (("--last", 1, "--counter", "c", *ORT), "--counter: the plan limits no queries"),
    (("--policy", "mine", "--last", 1, *ORT), "unknown policy 'mine+ennclave'"),
    (("--last", 0), "--last"),
    (("--last", 1, "--answers", "some"), "--answers"),
    (("--last", 1, "--engine", "gpu"), "--engine"),
])  # fmt: skip
def test_options_that_do_not_fit(refused, model_file, pictures, more, message, tmp_path):
    assert message in refused("run", model_file, pictures[0], *more)


@pytest.mark.parametrize("option", ["--last", "--from", "--answers", "--queries"])
def test_a_plan_has_decided(refused, cloister, model_file, pictures, tmp_path, option):
    path = tmp_path / "a.plan"
    assert cloister("plan", model_file, "--policy", "enclave", "--out", path).code == 0
    value = {"--answers": "label", "--from": "Gemm_4"}.get(option, 1)
    for verb in (("run", path, pictures[0]), ("inspect", path)):
        message = refused(*verb, option, value)
        assert message == f"error: {option}: is decided by the plan; leave it out"


def test_a_whole_plan_takes_no_module(refused, cloister, model_file, pictures, tmp_path):
    path = tmp_path / "a.plan"
    assert cloister("plan", model_file, "--policy", "enclave", "--out", path).code == 0
    given = ("run", path, pictures[0], "--policy", "enclave", "--module", tmp_path)
    assert "hides no layers; leave it out" in refused(*given)


@pytest.mark.parametrize("option", ["--engine", "--module"])
def test_a_plan_of_a_whole_model_writes_no_module(refused, model_file, tmp_path, option):
    message = refused(
        "plan", model_file, "--policy", "enclave", "--out", tmp_path / "a.plan", option, "native"
    )
    assert message == f"error: {option}: is about a hidden end; give --last N or --from NODE"


def test_compare_counts_no_queries(refused, model_file, pictures):
    message = refused("compare", model_file, pictures[0], "--last", 1, "--queries", 5)
    assert message.startswith("error: --queries: no query is counted here")
    message = refused("compare", model_file, pictures[0], "--engine", "native")
    assert message == "error: --engine: goes with --last or --from"
