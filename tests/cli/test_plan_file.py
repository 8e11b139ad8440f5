"""`cloister plan` and `run FILE.plan`: a plan's file decides nothing of protection by itself."""

import dataclasses
import json

import numpy as np
import pytest

from cloister.plan.plan import Plan


@pytest.fixture
def planned(cloister, model_file, pictures, tmp_path):
    def run(*more, name="m.plan", calibration=pictures):
        path = tmp_path / name
        floats = {"open", "enclave"}.intersection(map(str, more[-1:]))
        given = ("--calibration", calibration[0].parent) if calibration and not floats else ()
        ran = cloister("plan", model_file, "--out", path, *more, *given)
        assert ran.code == 0, ran
        return path

    return run


def outputs(ran):
    assert ran.code == 0, ran
    document = json.loads(ran.out)
    return [one["values"] for one in document["outputs"]], document


@pytest.mark.parametrize("policy", ["slalom", "verified", "blinded", "enclave", "open"])
def test_a_plan_s_file_runs_as_the_model_does(cloister, planned, model_file, pictures, policy):
    path = planned("--policy", policy)
    more = ("--policy", policy, pictures[0], "--json")
    ranges = () if policy in ("enclave", "open") else ("--calibration", pictures[0].parent)
    by_model, told = outputs(cloister("run", model_file, *ranges, *more))
    by_file, found = outputs(cloister("run", path, *more))
    assert by_file == by_model
    assert found["plan_digest"] == told["plan_digest"] == Plan.load(path).digest.hex()
    assert found["claims"] == told["claims"]


def test_a_plan_is_shown_when_it_is_made(cloister, planned, model_file, pictures, tmp_path):
    ran = cloister("plan", model_file, pictures[0], "--out", tmp_path / "a.plan")
    digest = Plan.load(tmp_path / "a.plan").digest.hex()
    assert ran.code == 0, ran
    assert digest in "".join(ran.out.split()) and "policy slalom" in ran.out
    assert "calibrated on the inputs themselves" in " ".join(ran.out.split())
    shown = json.loads(
        cloister(
            "plan", model_file, "--policy", "open", "--out", tmp_path / "b.plan", "--json"
        ).out
    )  # fmt: skip
    assert shown["plan_digest"] == Plan.load(tmp_path / "b.plan").digest.hex()
    assert shown["claims"]["subject"] == "policy open"


@pytest.mark.parametrize("policy", ["open", "verified", "blinded", "enclave"])
def test_a_plan_s_file_does_not_choose_the_policy(cloister, refused, planned, pictures, policy):
    path = planned("--policy", policy)
    given = ("run", path, pictures[0])
    message = refused(*given)
    assert "m.plan" in message and f"--policy {policy}" in message
    assert "slalom is wanted" in message
    assert f"--policy {policy}" in refused(*given, "--policy", "slalom")
    _, found = outputs(cloister(*given, "--policy", policy, "--json"))
    assert found["claims"]["subject"] == f"policy {policy}"


def test_a_digest_pins_the_plan(cloister, refused, planned, model_file, pictures):
    path = planned("--policy", "open")
    digest = Plan.load(path).digest.hex()
    given = ("run", path, pictures[0])
    _, found = outputs(cloister(*given, "--digest", digest.upper(), "--json"))
    assert found["claims"]["subject"] == "policy open"
    planned("--weight-bits", 8, "--policy", "verified")
    assert f"the plan is {Plan.load(path).digest.hex()}" in refused(*given, "--digest", digest)
    assert "the plan is" in refused(*given, "--digest", "nothing")
    damaged = path.with_name("damaged.plan")
    damaged.write_bytes(path.read_bytes()[:-1])
    # Its digest is compared before anything of it is read.
    message = refused("run", damaged, *given[2:], "--digest", Plan.load(path).digest.hex())
    assert "is not the plan" in message and "cannot be read" not in message
    # A pinned plan still has to be of the policy that is asked for.
    pinned = Plan.load(path).digest.hex()
    assert "slalom is wanted" in refused(*given, "--digest", pinned, "--policy", "slalom")
    # A plan that is made now can be pinned too.
    made = ("run", model_file, "--calibration", pictures[0].parent, pictures[0])
    assert "the plan is" in refused(*made, "--digest", digest)
    slalom = Plan.load(planned()).digest.hex()
    assert cloister(*made, "--digest", slalom).code == 0


@pytest.mark.parametrize(
    "option", [("--calibration", "x.png"), ("--weight-bits", 9), ("--activation-bits", 9)]
)
def test_what_a_plan_says_already_is_not_said_again(refused, planned, pictures, option):
    message = refused("run", planned(), pictures[0], *option)
    assert message.startswith(f"error: {option[0]}: ")


def test_where_a_plan_is_written(refused, model_file, pictures, tmp_path):
    for path in (tmp_path / "none" / "a.plan", tmp_path / "a.txt"):
        assert "--out" in refused("plan", model_file, pictures[0], "--out", path)
    assert "--calibration" in refused("plan", model_file, "--out", tmp_path / "a.plan")


def test_a_plan_runs_without_its_model(cloister, planned, pictures, tmp_path):
    path = planned()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    path.rename(moved / "other.plan")
    target = tmp_path / "y.npz"
    ran = cloister("run", moved / "other.plan", *pictures, "--out", target)
    assert ran.code == 0 and "other.plan" in ran.out and "policy slalom" in ran.out
    assert all(len(array) == len(pictures) for array in np.load(target).values())


def test_a_policy_of_the_file_s_own_has_to_be_pinned(
    cloister, refused, planned, pictures, tmp_path
):
    """Its name says nothing about what is protected, whether or not the caller repeats it."""
    path = planned("--policy", "open")
    plan = dataclasses.replace(Plan.load(path), policy="slalom+")
    plan.save(path)
    given, digest = ("run", path, pictures[0]), plan.digest.hex()
    for more in ((), ("--policy", "slalom+")):
        message = refused(*given, *more)
        assert "pin the plan with --digest" in message and "give --policy" not in message
    _, found = outputs(cloister(*given, "--digest", digest, "--json"))
    assert found["claims"]["subject"] == "policy slalom+"


def test_pads_of_a_policy_of_the_file_s_own(cloister, refused, planned, tmp_path):
    path = planned()
    plan = dataclasses.replace(Plan.load(path), policy="own")
    plan.save(path)
    given = (
        "pads", "make", path, tmp_path / "pads", "--key", tmp_path / "pads.key", "--count", 1,
    )  # fmt: skip
    assert "pin the plan with --digest" in refused(*given)
    assert "the plan is" in refused(*given, "--digest", "00")
    assert not (tmp_path / "pads.key").exists()
    assert cloister(*given, "--digest", plan.digest.hex()).code == 0
