"""What is protected follows from the command line and the key file, not from files of others."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from cloister.plan.plan import Plan
from cloister.plan.protection import EVERYWHERE, OUTSOURCED
from cloister.plan.quantised import Precision
from cloister.trusted.pads.stored_plan import PLAN_FILE, load_plan


@pytest.fixture
def store(tmp_path):
    return tmp_path / "untrusted" / "pads", tmp_path / "key"


@pytest.fixture
def make(cloister, model_file, pictures, store):
    """Fill the store, or another one, as its owner does."""

    def run(*more, folder=store[0], key=store[1], calibration=pictures, model=model_file):
        given = ("--calibration", calibration[0].parent) if calibration else ()
        where = (folder, "--key", key)
        return cloister("pads", "make", model, "--count", 1, *where, *more, *given)

    return run


@pytest.fixture
def use(model_file, pictures, store):
    return (
        "run", model_file, "--pads", store[0], "--key", store[1], pictures[0],
    )  # fmt: skip


def altered(store, change):
    """Somebody who can write the folder, and knows the plan, puts another one there."""
    plan = load_plan(store[0], key_file=store[1])
    other = change(plan)
    assert other.digest != plan.digest
    other.save(store[0] / PLAN_FILE)


def of_policy(policy):
    """The same plan, of a policy that protects less, or everything."""

    def change(plan):
        if policy in EVERYWHERE:
            everywhere = dict.fromkeys(plan.protections, EVERYWHERE[policy])
            return replace(plan, policy=policy, protections=everywhere, quantised={}, ranges={})
        outside = dict.fromkeys(plan.quantised, OUTSOURCED[policy])
        return replace(plan, policy=policy, protections={**plan.protections, **outside})

    return change


@pytest.mark.parametrize("policy", ["verified", "open", "blinded", "enclave"])
def test_a_policy_written_into_the_folder_is_refused(make, use, cloister, refused, store, policy):
    assert make().code == 0
    altered(store, of_policy(policy))
    message = refused(*use)
    assert PLAN_FILE in message and "does not vouch" in message
    again = make(calibration=None)
    assert again.code == 2 and "does not vouch" in again.err
    # Its owner puts it right by what the store was made from.
    assert make().code == 0
    assert json.loads(cloister(*use, "--json").out)["claims"]["subject"] == "policy slalom"


def ranges_times(factor):
    def changed(plan):
        ranges = {name: tuple(factor * top for top in tops) for name, tops in plan.ranges.items()}
        return replace(plan, ranges=ranges)

    return changed


def first_node(**change):
    def changed(plan):
        name = plan.linear_nodes[0].node
        node = replace(plan.quantised[name], **change)
        return replace(plan, quantised={**plan.quantised, name: node})

    return changed


CHANGES = {
    "weight bits": lambda plan: replace(plan, precision=Precision(8, 12)),
    "activation bits": lambda plan: replace(plan, precision=Precision(12, 3)),
    "no ranges": lambda plan: replace(plan, ranges={}),
    "smaller ranges": ranges_times(1e-6),
    "larger ranges": ranges_times(1e6),
    "ranges with another last bit": ranges_times(1 + 1e-12),
    "input scale": first_node(x_scale=float(np.float32(1e-3))),
    "thresholds": first_node(x_qmax=7),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_other_change_is_refused_too(make, use, refused, store, change):
    assert make().code == 0
    altered(store, change)
    assert "does not vouch" in refused(*use)


@pytest.mark.parametrize("at", [0, 16, 100, -1])
def test_a_changed_byte_is_refused_before_anything_is_read(make, use, refused, store, at):
    assert make().code == 0
    data = bytearray((store[0] / PLAN_FILE).read_bytes())
    data[at] ^= 1
    (store[0] / PLAN_FILE).write_bytes(data)
    assert "does not vouch" in refused(*use)


def test_a_plan_of_another_store_is_refused(make, use, refused, store, tmp_path):
    """Of the same model and calibration, but of fewer protections, or of the same."""
    assert make().code == 0
    for name, more in (("blinded", ("--policy", "blinded")), ("same", ())):
        folder, key = tmp_path / name, tmp_path / f"{name}.key"
        assert make(*more, folder=folder, key=key).code == 0
        (store[0] / PLAN_FILE).write_bytes((folder / PLAN_FILE).read_bytes())
        assert "does not vouch" in refused(*use)


def test_a_store_without_its_plan_says_what_to_give(make, use, refused, store):
    assert make().code == 0
    (store[0] / PLAN_FILE).unlink()
    assert f"{PLAN_FILE}: no such file" in refused(*use)
    assert "--calibration" in make(calibration=None).err
    other = make("--weight-bits", 10)
    assert other.code == 2 and "holds pads of plan" in other.err
    assert not (store[0] / PLAN_FILE).exists()
    assert make().code == 0
    assert load_plan(store[0], key_file=store[1]).policy == "slalom"


def test_the_storage_learns_no_weight_and_no_range(make, store):
    assert make().code == 0
    plan = load_plan(store[0], key_file=store[1])
    sealed = (store[0] / PLAN_FILE).read_bytes()
    data = plan.to_bytes()
    assert len(sealed) == len(data) + 28
    assert b"slalom" in data and b"slalom" not in sealed
    assert all(node.scale.tobytes() not in sealed for node in plan.linear_nodes)


def test_a_file_too_short_to_be_sealed_is_refused(make, use, refused, store):
    assert make().code == 0
    (store[0] / PLAN_FILE).write_bytes(b"")
    assert "does not vouch" in refused(*use)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("trap", ["file", "dangling link"])
def test_a_plan_planted_before_the_first_pads_is_refused(
    make, pictures, store, tmp_path, calibrated, trap
):  # fmt: skip
    store[0].mkdir(parents=True)
    if trap == "file":
        assert make("--policy", "blinded", folder=tmp_path / "p", key=tmp_path / "k").code == 0
        (store[0] / PLAN_FILE).write_bytes((tmp_path / "p" / PLAN_FILE).read_bytes())
    else:
        (store[0] / PLAN_FILE).symlink_to(store[0] / "nothing")
    before = os.listdir(store[0])
    made = make(calibration=pictures if calibrated else None)
    assert made.code == 2
    assert "was there before the store" in made.err and "delete it" in made.err
    assert os.listdir(store[0]) == before
    assert not store[1].exists()


@pytest.mark.parametrize("name", [PLAN_FILE, f"{PLAN_FILE}.part", f"{PLAN_FILE}.new"])
def test_no_link_in_the_folder_is_written_through(make, use, cloister, store, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    store[0].mkdir(parents=True)
    if name != PLAN_FILE:
        (store[0] / name).symlink_to(victim)
    assert make().code == 0
    if name == PLAN_FILE:
        (store[0] / name).unlink()
        (store[0] / name).symlink_to(victim)
        assert make().code == 0
    assert victim.read_text() == "precious"
    assert not (store[0] / PLAN_FILE).is_symlink()
    assert cloister(*use).code == 0


@pytest.mark.parametrize("policy", ["verified", "open", "enclave"])
def test_pads_for_a_policy_that_uses_none_are_refused(make, use, refused, policy):
    assert make().code == 0
    assert f"policy '{policy}' blinds nothing" in refused(*use, "--policy", policy)


def test_another_policy_that_uses_pads_is_another_plan(make, use, refused):
    assert make("--policy", "blinded").code == 0
    assert "holds pads of plan" in refused(*use, "--policy", "slalom")


def test_the_policy_that_a_store_was_made_for_is_its_default(make, use, cloister):
    assert make("--policy", "blinded").code == 0
    ran = cloister(*use, "--json")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["claims"]["subject"] == "policy blinded"


# ---- stores of a plan's file


@pytest.fixture
def plan_file(cloister, model_file, pictures, tmp_path):
    def run(*more, name="m.plan"):
        path = tmp_path / name
        ranges = () if more[-1:] in (("open",), ("enclave",)) else (pictures[0].parent,)
        ran = cloister("plan", model_file, "--out", path, *more, *ranges)
        assert ran.code == 0, ran
        return path

    return run


def test_pads_are_made_for_a_plan_s_file_and_used_with_it(make, use, cloister, plan_file):
    path = plan_file()
    assert make(model=path, calibration=None).code == 0
    by_file = cloister("run", path, *use[2:], "--json")
    assert json.loads(by_file.out)["report"]["pads_from"].startswith("store")
    # The store's plan makes the same one of the model.
    assert make(calibration=None).code == 0
    assert (
        json.loads(cloister(*use, "--json").out)["plan_digest"]
        == (json.loads(by_file.out)["plan_digest"])
    )


def test_pads_of_another_plan_s_file_are_refused(make, use, refused, plan_file):
    assert make(model=plan_file(), calibration=None).code == 0
    for policy in ("verified", "open", "enclave"):
        other = plan_file("--policy", policy, name="other.plan")
        assert "is not the plan" in refused("run", other, *use[2:])
        digest = Plan.load(other).digest.hex()
        assert "blinds nothing" in refused("run", other, *use[2:], "--digest", digest)
    for more in (("--policy", "blinded"), ("--weight-bits", 8)):
        other = plan_file(*more)
        assert "is not the plan" in refused("run", other, *use[2:])
        digest = Plan.load(other).digest.hex()
        assert "holds pads of plan" in refused("run", other, *use[2:], "--digest", digest)


def test_nothing_is_read_of_a_plan_that_the_key_file_does_not_pin(make, use, refused, plan_file):
    """Its digest is compared before its bytes are parsed."""
    path = plan_file()
    assert make(model=path, calibration=None).code == 0
    path.write_bytes(path.read_bytes()[:-1])
    message = refused("run", path, *use[2:])
    assert "is not the plan" in message and "cannot be read" not in message


def test_pads_are_made_only_for_a_policy_that_was_asked_for(make, plan_file):
    path = plan_file("--policy", "blinded")
    made = make(model=path, calibration=None)
    assert made.code == 2 and "give --policy blinded" in made.err
    assert make("--policy", "blinded", model=path, calibration=None).code == 0


def test_a_run_of_more_inputs_than_pads_uses_none(cloister, refused, make, use, store, pictures):
    assert make().code == 0
    message = refused(*use, *pictures[1:3])
    assert "1 unused pad sets, 3 needed, one for each input; none is used" in message
    assert "--count 3 or more" in message
    status = ("pads", "status", store[0], "--key", store[1])
    assert "1 pad sets ready" in cloister(*status).out
    assert cloister(*use).code == 0
    assert "0 pad sets ready" in cloister(*status).out


def test_status_says_what_missing_pads_are(cloister, make, store):
    assert make().code == 0
    status = ("pads", "status", store[0], "--key", store[1])
    assert "missing:" not in cloister(*status).out
    (block,) = store[0].glob("*.pad")
    block.unlink()
    found = cloister(*status).out
    assert "0 pad sets ready (0 B), 0 used, 1 missing" in found
    assert "missing: reserved, and without a file" in found
