import dataclasses
from itertools import product

import pytest

from cloister.errors import PlanError
from cloister.plan import protection
from cloister.plan.protection import BY_NAME, MODULE, Input, Protection, Weights
from plan.test_module_plan import module_plan


def test_the_named_protections_are_all_that_can_be_made():
    made = set()
    for axes in product(Input, (False, True), Weights):
        try:
            made.add(Protection(*axes))
        except PlanError:
            continue
    assert made == set(BY_NAME.values())
    assert len(BY_NAME) == 6
    for name, value in BY_NAME.items():
        assert value.name == name
        assert getattr(protection, name.upper().replace("+", "_")) is value


@pytest.mark.parametrize("axes", [
    (Input.INSIDE, True), (Input.CLEAR, False, Weights.HIDDEN),
    (Input.BLINDED, True, Weights.HIDDEN), (Input.INSIDE, True, Weights.HIDDEN),
])  # fmt: skip
def test_what_means_nothing_cannot_be_made(axes):
    with pytest.raises(PlanError, match=r"^protection: "):
        Protection(*axes)


def test_a_protection_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODULE.weights = Weights.PUBLIC


def test_a_hidden_part_has_no_integers():
    plan = module_plan()
    numbers = next(iter(plan.quantised.values()))
    with pytest.raises(PlanError, match="node 'module': integers and protection do not fit"):
        dataclasses.replace(plan, quantised={**plan.quantised, "module": numbers})
