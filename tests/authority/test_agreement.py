"""Whose terms a client's samples come under: its own, or ones that give away no more."""

from dataclasses import fields, replace

import pytest

from authority.test_service import served  # noqa: F401  (a fixture)
from cloister.authority.account import LedgerLimits
from cloister.authority.agreement import EXPOSURE, IDENTITY, SILENT, Agreement, excesses
from cloister.authority.authority import Authority
from cloister.authority.enrolment import enrol
from cloister.authority.local import LocalClient
from cloister.authority.records import Terms
from cloister.authority.registration import NewPart
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.errors import EncryptionError, InputError, UnknownDatasetError

RNG = SystemRandom()
INFO = DatasetInfo("other", (4, 4, 2), 3, Encoding(1.0, 0.0, 8), 0, 8)
OURS = Agreement(INFO, Terms(labels_to_server=False))
"""What a client accepts that wants its labels kept, and decides nothing else."""


def other(**changes):
    """An agreement that differs from ours in the named fields."""
    ours = {field.name for field in fields(Terms)} & set(changes)
    terms = replace(OURS.terms, **{name: changes.pop(name) for name in ours})
    return Agreement(replace(INFO, **changes), terms)


WEAKER = {
    "encoding": {"encoding": Encoding(1.0, 0.0, 9)},
    "budget_rank": {"budget_rank": 9, "max_bits": 64},
    "mode": {"mode": "paper"},
    "labels_to_server": {"labels_to_server": True},
    "max_bits": {"max_bits": 65},
    "value_bits": {"value_bits": 9},
    "one_function": {"one_function": False},
    "evaluations": {"evaluations": 1},
}
STRICTER = {
    "encoding": {"encoding": Encoding(3.0, 1.0, 7)},
    "budget_rank": {"budget_rank": 0},
    "mode": {},
    "labels_to_server": {},
    "max_bits": {"max_bits": 0},
    "value_bits": {"value_bits": 1},
    "one_function": {},
    "evaluations": {},
}
"""For every field that can give something away; an empty change where ours is the strictest."""


def test_every_field_is_compared():
    """A field that is new to descriptions or terms has to find its place in the comparison."""
    there = [field.name for of in (DatasetInfo, Terms) for field in fields(of)]
    assert sorted(there) == sorted([*IDENTITY, *SILENT, *EXPOSURE])
    assert {field.name for field in fields(LedgerLimits)} <= set(EXPOSURE)
    assert [field.name for field in fields(Encoding)] == ["scale", "offset", "bits"]
    assert set(WEAKER) == set(STRICTER) == set(EXPOSURE)


@pytest.mark.parametrize("field", EXPOSURE)
def test_what_gives_away_more_is_found_and_what_gives_away_less_is_not(field):
    found = excesses(other(**WEAKER[field]), OURS)
    assert [excess.field for excess in found] == [field]
    assert all(excess.found > excess.accepted for excess in found)
    assert excesses(other(**STRICTER[field]), OURS) == ()
    assert excesses(OURS, other(**WEAKER[field])) == ()


def test_mode_paper_has_no_limits_to_compare():
    paper = other(mode="paper", max_bits=10**6)
    assert [excess.field for excess in excesses(paper, OURS)] == ["mode"]
    assert excesses(paper, other(mode="paper")) == excesses(OURS, paper) == ()


CHANGED = {
    "name": "third", "shape": (2, 4, 4), "classes": 4, "targets": "labels", "samples": 5,
    "notes": "text",
}  # fmt: skip


@pytest.mark.parametrize("field", IDENTITY)
def test_another_data_set_is_no_matter_of_more_or_less(field):
    change = CHANGED[field]
    with pytest.raises(InputError, match=f"data set .*: its {field} is"):
        excesses(other(**{field: change}), OURS)


@pytest.mark.parametrize("field", SILENT)
def test_what_says_nothing_is_not_compared(field):
    change = {"samples": 5, "notes": "text"}[field]
    assert excesses(other(**{field: change}), OURS) == ()


@pytest.mark.parametrize("field", [*EXPOSURE, *SILENT, *IDENTITY])
def test_an_agreement_is_named_by_all_of_it(field):
    """But for the samples, which come and go."""
    changed = other(**(WEAKER.get(field) or {field: CHANGED[field]}))
    assert (changed.digest == OURS.digest) == (field == "samples")


def started(authority, agreed):
    making = enrol(LocalClient(authority), agreed, rng=RNG)
    assert making.register("a" * 32, 3, "b" * 64, b"k" * 32) == 0
    return making


@pytest.mark.parametrize("remote", [False, True], ids=["in process", "over HTTPS"])
@pytest.mark.parametrize("field", EXPOSURE)
def test_nobody_joins_weaker_terms_unasked(kit, served, field, remote):  # noqa: F811
    started(kit.authority, other(**WEAKER[field]))
    service = served("client") if remote else LocalClient(kit.authority)
    with pytest.raises(InputError, match=f"other: gives away more than was accepted: .*{field}"):
        enrol(service, OURS, rng=RNG)
    agreed = enrol(service, other(**WEAKER[field]), rng=RNG)
    assert agreed.register("c" * 32, 3, "d" * 64, b"l" * 32) == 3


@pytest.mark.parametrize("field", EXPOSURE)
def test_a_part_comes_under_the_terms_that_its_client_saw(kit, field):
    """A name may stand for another data set by the time that a client has encrypted."""
    service = LocalClient(kit.authority)
    started(kit.authority, other(**WEAKER[field]))
    known = kit.authority.find("other")
    part = NewPart("c" * 32, 3, "d" * 64, b"l" * 32, known.label_key, is_first=False)
    with pytest.raises(EncryptionError, match="is not the one that this client has seen"):
        service.register(OURS, part)
    with pytest.raises(EncryptionError, match="is not the one that this client has seen"):
        service.register(known.agreement, replace(part, label_key=bytes(32)))
    assert kit.authority.describe("other").samples == 3
    assert service.register(known.agreement, part) == 3


def test_a_data_set_that_is_gone_is_not_made_again_by_those_who_joined_it(kit):
    service = LocalClient(kit.authority)
    part = NewPart("c" * 32, 3, "d" * 64, b"l" * 32, bytes(32), is_first=False)
    with pytest.raises(UnknownDatasetError, match="not known"):
        service.register(OURS, part)
    assert kit.authority.datasets() == ("set",)


@pytest.mark.parametrize("change", [
    {"labels_to_server": "no"}, {"one_function": None},
    {"max_bits": 1.5}, {"value_bits": 0}, {"notes": 3},
])  # fmt: skip
def test_nothing_is_made_of_terms_that_mean_nothing(kit, change):
    with pytest.raises(InputError):
        enrol(LocalClient(kit.authority), other(**change), rng=RNG)
    part = NewPart("a" * 32, 3, "b" * 64, b"k" * 32, bytes(32), is_first=True)
    with pytest.raises(InputError):
        LocalClient(kit.authority).register(other(**change), part)
    assert kit.authority.datasets() == ("set",)
    assert kit.authority.find("other") is None


@pytest.mark.parametrize("wrong", [
    {"samples": 0}, {"samples": -3}, {"samples": 2**40}, {"pad_key": bytes(31)},
    {"label_key": bytes(31)}, {"part": "x" * 32}, {"sha256": "b" * 63},
])  # fmt: skip
def test_a_first_part_that_is_refused_makes_no_data_set(kit, wrong):
    good = NewPart("a" * 32, 3, "b" * 64, b"k" * 32, b"l" * 32, is_first=True)
    service = LocalClient(kit.authority)
    with pytest.raises(InputError):
        service.register(OURS, replace(good, **wrong))
    assert kit.authority.find("other") is None
    kit.authority.close()
    kit.authority = Authority(kit.folder)
    assert kit.authority.datasets() == ("set",)
    stricter = other(budget_rank=1)
    assert started(kit.authority, stricter).agreement == stricter


def test_permutations_are_of_the_data_set_that_was_joined(kit):
    """A client that makes a data set draws its label key; those who join have the same one."""
    rng = InsecureSeededRandom(3)
    making = enrol(LocalClient(kit.authority), OURS, rng=rng)
    making.register("a" * 32, 3, "b" * 64, b"k" * 32)
    joined = enrol(LocalClient(kit.authority), OURS, rng=rng)
    assert joined.permutation.tolist() == making.permutation.tolist()
    assert sorted(joined.permutation.tolist()) == [0, 1, 2]
