import dataclasses
from itertools import product

import pytest

import nets
from cloister.errors import PlanError, UnsupportedError
from cloister.plan import protection
from cloister.plan.protection import BY_NAME, MODULE, Input, Protection, Weights
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.session import Session
from trusted.test_session import plan_of


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


def hidden_head(policy="slalom"):
    """A plan that hides the weights of its last linear node."""
    plan = plan_of(nets.chain(), policy)
    last = plan.linear_nodes[-1].node
    quantised = {name: node for name, node in plan.quantised.items() if name != last}
    protections = {**plan.protections, last: MODULE}
    own = dataclasses.replace(
        plan, policy="hidden head", protections=protections, quantised=quantised
    )
    return own, last


def test_hidden_weights_are_planned_and_not_run_yet():
    plan, last = hidden_head()
    assert plan.protections[last].weights is Weights.HIDDEN
    for run in (compile_plan, Session):
        with pytest.raises(UnsupportedError, match=f"node '{last}': .* cannot be built yet"):
            run(plan)


def test_hidden_weights_have_no_integers():
    plan, _ = hidden_head()
    with pytest.raises(PlanError, match="do not fit together"):
        dataclasses.replace(plan, quantised=plan_of(nets.chain()).quantised)
    assert plan.digest != plan_of(nets.chain()).digest
