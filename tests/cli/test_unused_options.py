"""Options that mean nothing for a plan are refused, and no file is written."""

import pytest

from cloister.cli import hidden_end, hidden_verbs
from cloister.plan.protection import EVERYWHERE

INSIDE = ("--policy", "enclave")
NO_WORKER = {
    "--worker": "nowhere.invalid:1", "--worker-threads": 2, "--timeout": 5,
    "--transcript": "seen.npz",
}  # fmt: skip
NO_INTEGERS = {"--on-clip": "raise", "--weight-bits": 8, "--activation-bits": 8}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("option", NO_WORKER)
def test_what_is_about_workers(refused, model_file, pictures, option, tmp_path):
    given = (pictures[0], *INSIDE, option, NO_WORKER[option])
    message = refused("run", model_file, *given)
    assert message.startswith(f"error: {option}: policy enclave sends nothing to a worker")
    assert not (tmp_path / "seen.npz").exists()


@pytest.mark.parametrize("option", NO_WORKER)
def test_what_is_about_workers_of_a_plan(cloister, refused, model_file, pictures, option, tmp_path):
    path = tmp_path / "inside.plan"
    assert cloister("plan", model_file, *INSIDE, "--out", path).code == 0
    message = refused("run", path, pictures[0], *INSIDE, option, NO_WORKER[option])
    assert message.startswith(f"error: {option}: policy enclave sends nothing to a worker")


def test_a_hidden_whole_has_no_worker(refused, model_file, pictures):
    given = (pictures[0], "--policy", "ennclave", "--last", 2, "--engine", "onnxruntime")
    message = refused("run", model_file, *given, "--worker", "nowhere.invalid:1")
    assert message.startswith("error: --worker: policy ennclave sends nothing to a worker")


@pytest.mark.parametrize("policy", EVERYWHERE)
@pytest.mark.parametrize("option", NO_INTEGERS)
def test_what_is_about_integers(refused, model_file, pictures, policy, option):
    message = refused(
        "run", model_file, pictures[0], "--policy", policy, option, NO_INTEGERS[option]
    )
    assert message.startswith(f"error: {option}: policy {policy} ")


@pytest.mark.parametrize("policy", EVERYWHERE)
def test_samples_where_nothing_is_calibrated(refused, model_file, pictures, policy, tmp_path):
    given = ("--policy", policy, "--calibration", pictures[0])
    for verb in (("run", model_file, pictures[1]), ("plan", model_file, "--out", "a.plan")):
        message = refused(*verb, *given)
        assert message.startswith(f"error: --calibration: policy {policy} computes everything in")
    assert not (tmp_path / "a.plan").exists()


def test_threads_of_a_worker_that_is_not_started(refused, model_file, pictures):
    given = ("--worker", "nowhere.invalid:1", "--worker-threads", 2)
    message = refused("run", model_file, pictures[0], *given)
    assert message.startswith("error: --worker-threads: is about the local worker")


def test_time_of_workers_that_make_no_pads(refused, model_file, pictures):
    message = refused(
        "pads", "make", model_file, "pads", "--key", "key", "--count", 1,
        "--calibration", pictures[0], "--timeout", 5,
    )  # fmt: skip
    assert message == "error: --timeout: goes with --worker or --maker"


@pytest.mark.parametrize("policy", [*EVERYWHERE, "ennclave"])
def test_costs_of_a_choice_that_there_is_not(refused, model_file, policy):
    more = ("--last", 1) if policy == "ennclave" else ()
    message = refused("inspect", model_file, "--policy", policy, "--measure", *more)
    assert message == f"error: --measure: policy {policy} does not choose where layers run"


@pytest.mark.parametrize("verb", ["plan", "compile"])
@pytest.mark.parametrize(
    "option", [("--resize", "8x8"), ("--mean", "0.5"), ("--layout", "nhwc")], ids=lambda o: o[0]
)
def test_how_to_read_samples_that_are_not_named(refused, model_file, verb, option, tmp_path):
    given = (
        "--last",
        1,
        *INSIDE,
        *option,
        "--out",
        tmp_path / ("a.plan" * (verb == "plan") or "a"),
    )
    message = refused(verb, model_file, *given)
    assert message.startswith(f"error: {option[0]}: is about reading inputs, and none are named")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["plan", "compile"])
def test_missing_samples_are_said_before_the_compiler_works(
    refused, model_file, verb, tmp_path, monkeypatch
):
    monkeypatch.delattr(hidden_verbs, "compile_module")
    monkeypatch.delattr(hidden_end, "compile_end")
    given = ("--last", 1, "--policy", "slalom", "--out", tmp_path / "a.plan")
    message = refused(verb, model_file, *given)
    assert message.startswith("error: --calibration: name typical inputs")
    assert list(tmp_path.iterdir()) == []
