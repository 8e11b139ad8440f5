"""`cloister bundle`: what a vendor and a customer read."""

import json
from dataclasses import replace

import pytest

from bundle.bundles import module, plan_of
from cloister.base.rng import SystemRandom
from cloister.bundle.bundle_keys import create_keys
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.cli.bundle_verbs import PUBLIC_PLAN

MODULE = module()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Keys, another vendor's keys and a compiled module, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("keys", "foreign"):
        create_keys(tmp_path / name, rng=SystemRandom())
    MODULE.save(tmp_path / "head")
    plan_of(MODULE).save(tmp_path / "head" / PUBLIC_PLAN)
    return tmp_path


SEAL = ("bundle", "seal", "head", "--key", "keys/content.key", "--signer", "keys/vendor.key",
        "--out", "model.bundle")  # fmt: skip
VERIFY = ("bundle", "verify", "model.bundle", "--vendor", "keys/vendor.pub")


def test_seal_and_verify(cloister, folder):
    ran = cloister(*SEAL, "--version", 3)
    assert ran.code == 0, ran
    assert ran.out.startswith("model.bundle: ")
    assert MODULE.manifest.digest.hex() in ran.out
    without = cloister(*VERIFY)
    assert without.code == 0, without
    assert "verified: the vendor signed every byte of the file" in without.out
    assert "not verified without --key: that the sealed part opens" in without.out
    assert "not verified without --at-least" in without.out
    opened = cloister(*VERIFY, "--key", "keys/content.key", "--at-least", 3)
    assert opened.code == 0, opened
    assert "verified: every chunk opens with the content key" in opened.out
    assert "verified: the version is at least 3" in opened.out
    assert "not verified without" not in opened.out


def test_json(cloister, folder):
    assert json.loads(cloister(*SEAL, "--json").out)["version"] == 1
    assert json.loads(cloister(*VERIFY, "--json").out)["opened"] is False
    found = json.loads(cloister(*VERIFY, "--key", "keys/content.key", "--json").out)
    assert found["opened"] is True
    shown = json.loads(cloister("bundle", "show", "model.bundle", "--json").out)
    assert shown == {name: value for name, value in found.items() if name != "opened"}
    assert shown["module_digest"] == MODULE.manifest.digest.hex()
    made = json.loads(cloister("bundle", "keys", "more", "--json").out)
    assert len(made["made"]) == 3


def test_show_prints_what_anyone_can_see(cloister, folder):
    cloister(*SEAL)
    (folder / "keys").rename(folder / "away")
    shown = cloister("bundle", "show", "model.bundle")
    assert "not verified" in shown.out.splitlines()[0]
    assert "HiddenOperator" not in shown.out
    assert MODULE.manifest.salt not in shown.out


def test_versions_count_upwards(cloister, refused, folder):
    for version in (1, 2):
        assert f"version {version}" in " ".join(cloister(*SEAL).out.split())
    assert "has version 2 already" in refused(*SEAL, "--version", 2)
    assert cloister(*SEAL, "--version", 7).code == 0
    assert "is stale: it has version 7" in refused(*VERIFY, "--at-least", 8)


def test_another_vendors_bundle_is_not_replaced(cloister, refused, folder):
    cloister(*SEAL)
    before = (folder / "model.bundle").read_bytes()
    foreign = (*SEAL[:-3], "foreign/vendor.key", *SEAL[-2:])
    assert "another vendor" in refused(*foreign)
    (folder / "other.bundle").write_text("a diary")
    assert "is not a bundle" in refused(*SEAL[:-1], "other.bundle")
    assert (folder / "model.bundle").read_bytes() == before
    assert (folder / "other.bundle").read_text() == "a diary"


def test_foreign_keys_are_refused(cloister, refused, folder):
    cloister(*SEAL)
    assert "no valid signature" in refused(*VERIFY[:-1], "foreign/vendor.pub")
    assert "content key is another" in refused(*VERIFY, "--key", "foreign/content.key")
    assert "is not a content key" in refused(*VERIFY, "--key", "keys/vendor.key")
    assert "is not a vendor's public key" in refused(*VERIFY[:-1], "keys/vendor.key")


def test_a_plan_of_another_module_is_refused(refused, folder):
    plan_of(module(1)).save(folder / "head" / PUBLIC_PLAN)
    assert "another module" in refused(*SEAL)
    assert not (folder / "model.bundle").exists()


RUN = ("run", "model.bundle", "x.npy", "--vendor", "keys/vendor.pub", "--key", "keys/content.key")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--digest", 64 * "0"), "the plan is "),
        (("--digest", "five"), "the plan is "),
        (("--policy", "slalom"), "is a plan of policy hidden head, and slalom is wanted"),
        (("--weight-bits", 8), "--weight-bits: is decided by the plan"),
        (("--calibration", "head"), "--calibration: is decided by the plan"),
        (("--last", 1), "--last: is decided by the bundle"),
        (("--queries", 1), "--queries: is decided by the bundle"),
        (("--module", "head"), "--module: goes with a plan, not a bundle"),
        (("--pads", "head"), "--pads: goes with a plan, not a bundle"),
        (("--vendor", "foreign/vendor.pub"), "no valid signature"),
        (("--key", "foreign/content.key"), "the content key is another bundle's"),
        (("--at-least", 2), "is stale"),
    ],
)
def test_a_run_takes_the_plan_that_the_vendor_signed(cloister, refused, folder, given, message):
    cloister(*SEAL)
    assert message in refused(*RUN, *given)


def test_a_plan_of_another_place_is_sealed(cloister, folder):
    (folder / "head" / PUBLIC_PLAN).rename(folder / "own.plan")
    assert cloister(*SEAL, "--plan", "own.plan").code == 0
    found = SealedBundle.show(folder / "model.bundle")
    assert found.plan_digest == plan_of(MODULE).digest


@pytest.mark.parametrize(
    ("given", "size"), [("power-of-two", 4096), ("5000", 5000), ("x", None), ("10", None)]
)
def test_padding(cloister, refused, folder, given, size):
    if size is None:
        assert f"--pad-to {given}" in refused(*SEAL, "--pad-to", given)
        return
    assert cloister(*SEAL, "--pad-to", given).code == 0
    assert SealedBundle.show(folder / "model.bundle").hidden_bytes == size


def test_a_module_without_builds_is_sealed_with_its_source_alone(cloister, refused, folder):
    bare = replace(MODULE, manifest=replace(MODULE.manifest, builds={}), builds={})
    bare.save(folder / "head")
    plan_of(bare).save(folder / "head" / PUBLIC_PLAN)
    assert "head: has no build that a customer could run; compile it with" in refused(*SEAL)
    assert not (folder / "model.bundle").exists()
    assert cloister(*SEAL, "--with-source").code == 0


def test_the_source_is_sealed_only_if_wanted(cloister, folder):
    cloister(*SEAL)
    small = SealedBundle.show(folder / "model.bundle").hidden_bytes
    cloister(*SEAL, "--with-source")
    assert SealedBundle.show(folder / "model.bundle").hidden_bytes == small + len(MODULE.source)
