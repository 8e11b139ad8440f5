"""What is protected follows from the command line and the key file, not from files of others."""

import json
import os

import pytest

from cloister.plan.recipe import Recipe
from cloister.trusted.pads.recipe_mac import RECIPE_FILE


@pytest.fixture
def store(tmp_path):
    return tmp_path / "untrusted" / "pads", tmp_path / "key"


@pytest.fixture
def make(cloister, model_file, pictures, store):
    """Fill the store, or another one, as its owner does."""

    def run(*more, folder=store[0], key=store[1], calibration=pictures):
        given = ("--calibration", *calibration) if calibration else ()
        where = ("--store", folder, "--pad-key", key)
        return cloister("pads", "make", model_file, "--count", 1, *where, *more, *given)

    return run


@pytest.fixture
def use(model_file, pictures, store):
    return (
        "run", model_file, "--pads", store[0], "--pad-key", store[1], "--input", pictures[0],
    )  # fmt: skip


def document(folder):
    return json.loads((folder / RECIPE_FILE).read_text())


def altered(folder, **changes):
    (folder / RECIPE_FILE).write_text(json.dumps({**document(folder), **changes}))


@pytest.mark.parametrize("policy", ["verified", "open", "blinded", "enclave"])
def test_a_policy_written_into_the_folder_is_refused(make, use, cloister, refused, store, policy):
    assert make().code == 0
    altered(store[0], policy=policy)
    message = refused(*use)
    assert RECIPE_FILE in message and "does not vouch" in message
    again = make(calibration=None)
    assert again.code == 2 and "does not vouch" in again.err
    # Its owner puts it right by what the store was made from.
    assert make().code == 0
    assert json.loads(cloister(*use, "--json").out)["claims"]["policy"] == "slalom"


@pytest.mark.parametrize(
    "change", [{"weight_bits": 8}, {"activation_bits": 3}, {"ranges": {}}, {"mac": "0" * 64},
               {"mac": None}, {"mac": "\u00e9"}, {"mac": "\ud800"}],
)  # fmt: skip
def test_any_other_change_is_refused_too(make, use, refused, store, change):
    assert make().code == 0
    altered(store[0], **change)
    assert "does not vouch" in refused(*use)


def test_ranges_written_into_the_folder_are_refused(make, use, refused, store):
    assert make().code == 0
    for factor in (1e-6, 1e6, 1 + 1e-12):
        found = document(store[0])["ranges"]
        ranges = {name: [factor * top for top in tops] for name, tops in found.items()}
        altered(store[0], ranges=ranges)
        assert "does not vouch" in refused(*use)


def test_a_recipe_of_another_store_is_refused(make, use, refused, store, tmp_path):
    """Of the same model and calibration, but of fewer protections, or of the same."""
    assert make().code == 0
    for name, more in (("blinded", ("--policy", "blinded")), ("same", ())):
        folder, key = tmp_path / name, tmp_path / f"{name}.key"
        assert make(*more, folder=folder, key=key).code == 0
        (store[0] / RECIPE_FILE).write_bytes((folder / RECIPE_FILE).read_bytes())
        assert "does not vouch" in refused(*use)


def test_a_store_without_its_recipe_says_what_to_give(make, use, refused, store):
    assert make().code == 0
    (store[0] / RECIPE_FILE).unlink()
    assert f"{RECIPE_FILE}: no such file" in refused(*use)
    assert "--calibration" in make(calibration=None).err
    other = make("--weight-bits", 10)
    assert other.code == 2 and "holds pads of plan" in other.err
    assert not (store[0] / RECIPE_FILE).exists()
    assert make().code == 0
    assert document(store[0])["mac"]


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("trap", ["file", "dangling link"])
def test_a_recipe_planted_before_the_first_pads_is_refused(
    make, pictures, store, calibrated, trap
):  # fmt: skip
    store[0].mkdir(parents=True)
    if trap == "file":
        Recipe("blinded", ranges={"image": (1.0,)}).save(store[0] / RECIPE_FILE)
    else:
        (store[0] / RECIPE_FILE).symlink_to(store[0] / "nothing")
    before = os.listdir(store[0])
    made = make(calibration=pictures if calibrated else None)
    assert made.code == 2
    assert "was there before the store" in made.err and "delete it" in made.err
    assert os.listdir(store[0]) == before
    assert not store[1].exists()


@pytest.mark.parametrize("name", [RECIPE_FILE, f"{RECIPE_FILE}.part", f"{RECIPE_FILE}.new"])
def test_no_link_in_the_folder_is_written_through(make, use, cloister, store, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    store[0].mkdir(parents=True)
    if name != RECIPE_FILE:
        (store[0] / name).symlink_to(victim)
    assert make().code == 0
    if name == RECIPE_FILE:
        (store[0] / name).unlink()
        (store[0] / name).symlink_to(victim)
        assert make().code == 0
    assert victim.read_text() == "precious"
    assert not (store[0] / RECIPE_FILE).is_symlink()
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
    assert json.loads(ran.out)["claims"]["policy"] == "blinded"


# ---- calibration files, which are anybody's


def recipe_file(tmp_path, make, store, **changes):
    assert make().code == 0
    path = tmp_path / "cal.json"
    path.write_text(json.dumps({**document(store[0]), **changes}))
    return path


@pytest.mark.parametrize("policy", ["open", "verified", "blinded", "enclave"])
def test_a_calibration_file_does_not_choose_the_policy(
    make, store, cloister, refused, model_file, pictures, tmp_path, policy
):
    path = recipe_file(tmp_path, make, store, policy=policy)
    given = (model_file, "--input", pictures[0], "--calibration", path)
    for verb in ("run", "compare"):
        message = refused(verb, *given)
        assert "cal.json" in message and f"--policy {policy}" in message
        assert "slalom is wanted" in message
        assert f"--policy {policy}" in refused(verb, *given, "--policy", "slalom")
    made = make(folder=tmp_path / "p", key=tmp_path / "k", calibration=[path])
    assert made.code == 2 and f"--policy {policy}" in made.err
    ran = cloister("run", *given, "--policy", policy, "--json")
    assert json.loads(ran.out)["claims"]["policy"] == policy


def test_a_calibration_file_gives_ranges_and_bits_and_is_named(
    make, store, cloister, model_file, pictures, tmp_path
):
    path = recipe_file(tmp_path, make, store, activation_bits=9)
    given = (model_file, "--input", pictures[0], "--calibration", path, "--json")
    origin = json.loads(cloister("run", *given).out)["calibration"]
    assert str(path) in origin and "12 bits for weights, 9 for activations" in origin


@pytest.mark.parametrize("top", [-1.0, 1e39, 1e300, pytest.param(10**400, id="a long integer")])
def test_ranges_that_no_activation_has_are_refused(
    make, store, refused, model_file, pictures, tmp_path, top
):
    path = recipe_file(tmp_path, make, store, ranges={"image": [top]})
    message = refused("run", model_file, "--input", pictures[0], "--calibration", path)
    assert "'image'" in message and "cal.json" in message


def test_a_policy_that_is_none_is_refused(make, store, refused, model_file, pictures, tmp_path):
    path = recipe_file(tmp_path, make, store, policy="none at all")
    message = refused("run", model_file, "--input", pictures[0], "--calibration", path)
    assert "'none at all'" in message and "slalom" in message
