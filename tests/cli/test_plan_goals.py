"""`cloister plan` with goals: the planner measures, chooses, shows, and writes what it chose."""

import json
from dataclasses import replace

import pytest

from cloister.cli.main import with_integrity
from cloister.graph.onnx.load import load
from cloister.plan.plan import Plan
from cloister.plan.split_report import save
from cloister.planner.frontier import PlanFrontier
from plan.split_reports import report_of

PROVEN = ("--hide-input", "proven", "--integrity")


@pytest.fixture
def audit(model_file, tmp_path):
    graph = load(model_file)
    folder = tmp_path / "report"
    folder.mkdir()
    ranges = {node.name: (4.0,) for node in graph.nodes}
    save(report_of(graph, accepted="MaxPool_2", ranges=ranges), folder)
    return folder


def test_the_frontier_and_the_chosen_plan_are_shown(cloister, model_file, tmp_path):
    ran = cloister("plan", model_file, *PROVEN, "--page", tmp_path / "page.html")
    assert ran.code == 0, ran
    text = " ".join(ran.out.split())
    assert "chosen: the least trusted time" in text or "protects most" in text
    assert "plans were costed" in text
    assert "FULL BLOCK" not in text and "\N{FULL BLOCK}" in text
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert list(tmp_path.glob("*.plan")) == []


def test_what_is_chosen_is_written_and_runs(cloister, model_file, pictures, tmp_path):
    path = tmp_path / "m.plan"
    more = ("--calibration", pictures[0].parent, "--out", path, "--json")
    ran = cloister("plan", model_file, *PROVEN, *more)
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    made = Plan.load(path)
    assert found["plan_digest"] == made.digest.hex()
    assert made.policy == found["chosen"]["policy"]
    inside = {name for name, p in made.protections.items() if p.name == "enclave"}
    assert inside >= set(found["chosen"]["inside"])
    assert found["claims"]["subject"] == f"policy {made.policy}"
    done = cloister("run", path, pictures[0], "--policy", made.policy, "--json")
    assert done.code == 0, done


def test_a_goal_decides_the_policy(cloister, model_file):
    def policies(*goals):
        ran = cloister("plan", model_file, *goals, "--json")
        assert ran.code == 0, ran
        return {one["policy"] for one in json.loads(ran.out)["plans"]}

    assert policies(*PROVEN) == {"slalom", "enclave"}
    assert policies("--hide-input", "proven") == {"slalom", "blinded", "enclave"}
    assert policies("--objective", "latency", "--integrity=full") == {
        "slalom", "verified", "enclave",
    }  # fmt: skip


def test_splits_need_an_audit(cloister, refused, model_file, audit, tmp_path):
    assert "--hide-input empirical: needs --audit" in refused(
        "plan", model_file, "--hide-input", "empirical"
    )
    path = tmp_path / "split.plan"
    ran = cloister(
        "plan", model_file, "--hide-input", "empirical", "--integrity", "prefix",
        "--audit", audit, "--out", path, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    split = [one for one in found["plans"] if one["until"] is not None]
    assert {one["policy"] for one in split} == {"origami", "origami-prefix"}
    assert {tuple(one["until"]) for one in split} == {("MaxPool_2",)}
    assert Plan.load(path).policy == found["chosen"]["policy"]


@pytest.mark.parametrize("policy", ["slalom", "enclave", "origami", "origami-prefix"])
def test_an_audit_has_the_ranges_of_any_chosen_plan(
    cloister, model_file, audit, tmp_path, monkeypatch, policy
):
    path = tmp_path / "m.plan"

    def chosen(frontier):
        return next(one for one in frontier.plans if one.policy == policy)

    monkeypatch.setattr(PlanFrontier, "chosen", property(chosen))
    ran = cloister(
        "plan", model_file, "--hide-input", "empirical", "--audit", audit, "--out", path,
        "--weight-bits", 11, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    made = Plan.load(path)
    assert made.policy == policy
    assert (made.split is not None) == policy.startswith("origami")


def test_another_plan_than_the_chosen_one_is_not_written(
    refused, model_file, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        PlanFrontier, "chosen",
        property(lambda frontier: replace(frontier.plans[0], protections={})),
    )  # fmt: skip
    message = refused(
        "plan", model_file, *PROVEN, "--calibration", pictures[0].parent,
        "--out", tmp_path / "m.plan",
    )  # fmt: skip
    assert "is not the one that was chosen" in message
    assert list(tmp_path.glob("*.plan")) == []


def test_hidden_weights_are_compiled(cloister, model_file, pictures, tmp_path):
    path = tmp_path / "hidden.plan"
    ran = cloister(
        "plan", model_file, *PROVEN, "--hide-weights", "last=1", "--out", path,
        "--calibration", pictures[0].parent, "--engine", "onnxruntime", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert all(one["module_ms"] > 0 for one in found["plans"])
    assert Plan.load(path).modules[0].digest.hex() == found["module_digest"]
    assert (tmp_path / "hidden.module").is_dir()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "--out: name a .plan file, or give goals, such as --hide-input proven"),
        (("--page", "p.html"), "--page: goes with a goal"),
        (("--batch", "2"), "--batch: goes with a goal"),
        (("--worker", "host:1"), "--worker: goes with a goal"),
        ((*PROVEN, "--policy", "slalom"), "--policy: is what the planner chooses"),
        ((*PROVEN, "--until", "MaxPool_2"), "--until: is what the planner chooses"),
        ((*PROVEN, "--page", "p.png"), "--page p.png: name an .html or .svg file"),
        ((*PROVEN, "--calibration", "x"), "--calibration: is for a plan that is written"),
        ((*PROVEN, "--out", "m.plan"), "--calibration: name typical inputs"),
        ((*PROVEN, "--max-trusted-ms", "0"), "--max-trusted-ms 0: give more than 0"),
        ((*PROVEN, "--max-trusted-ms", "1e-6"), "no plan that meets the other goals is that fast"),
        (
            ("--hide-input", "proven", "--integrity", "prefix"),
            "--integrity prefix: is about a split",
        ),
        (("--hide-input", "all"), "'all'"),
        (("--objective", "money"), "'money'"),
        (("--hide-weights", "2"), "--hide-weights 2: give last=N"),
        (("--hide-weights", "last=0"), "--hide-weights last=0: give last=N"),
        (("--hide-weights", "last=9"), "the model has 2 layers with weights"),
        (("--hide-weights", "last=2"), "--hide-weights: all layers are hidden"),
        (("--hide-weights", "last=1", "--last", "1"), "--last: is said by --hide-weights"),
        ((*PROVEN, "--engine", "wasm"), "--engine: is about a hidden end"),
        ((*PROVEN, "--audit", "none"), "none"),
    ],
)
def test_what_contradicts_is_refused(refused, model_file, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused("plan", model_file, *given)
    assert list(tmp_path.iterdir()) == []


def test_an_audit_of_another_model_is_refused(refused, other_model_file, audit):
    assert "audit this model" in refused(
        "plan", other_model_file, "--hide-input", "empirical", "--audit", audit
    )


def test_integrity_without_a_value_is_full():
    assert with_integrity(["plan", "m", "--integrity"])[-1] == "--integrity=full"
    assert with_integrity(["--integrity", "--json"]) == ["--integrity=full", "--json"]
    for given in (["--integrity", "prefix", "m"], ["--integrity=none"], ["run", "m"]):
        assert with_integrity(given) == given
    assert with_integrity(["--integrity", "model.onnx"]) == ["--integrity=full", "model.onnx"]
