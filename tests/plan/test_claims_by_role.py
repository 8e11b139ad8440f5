"""What each role of an inference can see, against what the claims say it learns."""

import socket
from collections import Counter
from unittest import mock

import numpy as np
import pytest

import nets
from cloister.base.rng import SystemRandom
from cloister.errors import PlanError
from cloister.plan import policies
from cloister.plan.claims import (
    CODE,
    FILES,
    INPUTS,
    MEMORY,
    MODULES,
    QUERIES,
    USE,
    WEIGHTS,
    Claims,
    Extent,
    Role,
    Statement,
    Strength,
    Verb,
    claims_of,
)
from cloister.plan.protection import BY_NAME, OPEN
from cloister.trusted import module_engines
from cloister.trusted.pads.maker import PadMaker
from cloister.trusted.pads.store import PadStore
from cloister.trusted.session import Session
from trusted.links import DirectLink
from trusted.modules import Started, planned_end
from trusted.test_session import plan_of
from trusted.test_transcript_is_uniform import ALARM, p_value, seen

POLICIES = pytest.mark.parametrize("policy", policies.NAMES)


def said(claims, role, about, verb=Verb.LEARNS):
    (found,) = (one for one in claims.of(role, verb) if one.about.partition(" (")[0] == about)
    return found


@POLICIES
def test_every_role_of_an_inference_has_its_statements(policy):
    claims = plan_of(nets.chain(), policy).claims()
    roles = {Role.WORKER, Role.HOST, Role.VENDOR}
    roles |= set() if policy == "enclave" else {Role.NETWORK}
    assert {one.role for one in claims.statements} == roles
    for role in roles:
        assert claims.of(role, Verb.LEARNS)
        assert claims.of(role, Verb.CAN)
    assert Claims.from_dict(claims.to_dict()) == claims
    with pytest.raises(PlanError, match="say nothing about what the training server learns"):
        claims.worst(Role.SERVER)


def test_a_statement_that_is_assumed_names_its_assumption():
    common = (Role.WORKER, Verb.LEARNS, INPUTS, Extent.NOTHING, "nothing")
    for strength, assumes in ((Strength.ASSUMED, ""), (Strength.PROVED, "the machine is safe")):
        with pytest.raises(PlanError, match="names its assumption"):
            Statement(*common, strength, assumes)


@pytest.mark.parametrize("policy", ["slalom", "verified", "blinded"])
def test_a_worker_sees_of_each_node_what_is_said(policy):
    """Uniform words where it is said to learn nothing, and the integers where everything."""
    plan = plan_of(nets.residual(), policy)
    messages = seen(plan, nets.samples(nets.residual(), 120))
    assert set(messages) == set(range(len(plan.linear_nodes)))
    for target, payload in messages.items():
        protection = plan.protection_of(plan.linear_nodes[target]).name
        learns = said(plan.claims(), Role.WORKER, protection).extent
        hidden = payload.dtype == np.uint32 and p_value(payload) > ALARM
        assert learns is (Extent.NOTHING if hidden else Extent.EVERYTHING)
    assert said(plan.claims(), Role.WORKER, USE).extent is Extent.BOUNDED


@POLICIES
def test_the_network_is_a_worker(policy):
    claims = plan_of(nets.chain(), policy).claims()
    for verb in Verb:
        found = claims.of(Role.NETWORK, verb)
        assert bool(found) is (policy != "enclave")
        assert all(one.extent is claims.worst(Role.WORKER, verb) for one in found)


def store_of(plan, folder, count):
    folder.mkdir()
    store = PadStore.create(
        folder / "pads", plan_digest=plan.digest, key_file=folder / "key", rng=SystemRandom()
    )
    maker = PadMaker(plan)
    rows = np.zeros((count, maker.layout.words), np.uint32)
    ids = store.reserve(count)
    maker.make(store.pad_key, ids[0], into=rows)
    made = [maker.layout.views(row) for row in rows]
    for pad_id, unblinding in zip(ids, made, strict=True):
        store.put(pad_id, unblinding)
    return store, made


def files(folder):
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_a_host_sees_of_a_pad_store_what_is_said(tmp_path):
    """Numbers and sizes that do not depend on inputs, and sealed bytes."""
    plan = plan_of(nets.chain())
    said_of_files = said(plan.claims(), Role.HOST, FILES)
    assert (said_of_files.extent, said_of_files.strength) == ("bounded", "assumed")
    left = []
    for name, feeds in (
        ("typical", nets.samples(nets.chain(), 3)),
        ("zeros", {n: 0 * x for n, x in nets.samples(nets.chain(), 3).items()}),
    ):
        store, made = store_of(plan, tmp_path / name, 5)
        folder = tmp_path / name / "pads"
        sealed = b"".join(path.read_bytes() for path in folder.iterdir())
        for unblinding in made:
            for terms in unblinding.values():
                assert terms.tobytes()[:16] not in sealed
        assert store.pad_key not in sealed
        ends = b"".join(path.read_bytes()[-4096:] for path in folder.iterdir())
        assert p_value(np.frombuffer(ends, np.uint8)) > ALARM
        with Session(plan, workers=[DirectLink()], pads=store) as session:
            session.run(feeds)
        left.append(files(folder))
    assert left[0] == left[1]
    assert len(left[0]) == 2


def test_a_host_is_trusted_with_memory_and_weights():
    claims = plan_of(nets.chain()).claims()
    for verb in Verb:
        memory = said(claims, Role.HOST, MEMORY, verb)
        assert memory.extent is Extent.EVERYTHING
        assert memory.assumes.startswith("it is trusted")
    assert "hardware_rooted: false" in said(claims, Role.HOST, MEMORY).text
    assert said(claims, Role.HOST, WEIGHTS).extent is Extent.EVERYTHING


OUTER = pytest.mark.parametrize("outer", policies.NAMES)


@OUTER
def test_every_role_of_a_plan_with_a_module_has_its_statements(outer):
    claims = planned_end(nets.chain(), outer, queries=9).plan.claims()
    roles = {Role.WORKER, Role.HOST, Role.VENDOR}
    roles |= set() if outer == "enclave" else {Role.NETWORK}
    assert {one.role for one in claims.statements} == roles
    for role in roles:
        assert claims.of(role, Verb.LEARNS)
        assert claims.of(role, Verb.CAN)
    assert Claims.from_dict(claims.to_dict()) == claims


@OUTER
@pytest.mark.parametrize("queries", [None, 500])
def test_a_host_learns_of_a_module_what_answers_tell(outer, queries):
    """That its memory is not read is assumed; what answers tell is what attacks show."""
    claims = planned_end(nets.chain(), outer, queries=queries).plan.claims()
    hidden = said(claims, Role.HOST, MODULES)
    assert (hidden.extent, hidden.strength) == (Extent.BOUNDED, Strength.ASSUMED)
    assert "does not read the memory of the engine's process" in hidden.assumes
    assert "hardware_rooted: false" in hidden.assumes
    assert "weights in modules" in said(claims, Role.HOST, MEMORY).text
    learns, can = (said(claims, Role.HOST, QUERIES, verb) for verb in Verb)
    bound = Extent.EVERYTHING if queries is None else Extent.BOUNDED
    assert learns.extent is can.extent is bound
    assert learns.strength is Strength.EMPIRICAL
    assert ("what 500 pairs" in learns.text) == (queries is not None)
    if queries is None:
        assert can.text == "ask without limit"
    else:
        assert "at most 500 times in all" in can.text
        assert "no old copy of its file is put back" in can.assumes
        assert "in unchanged code of Cloister" in can.assumes
    if len(planned_end(nets.chain(), outer).plan.graph.nodes) > 1:
        assert said(claims, Role.HOST, WEIGHTS).text == "all, but those in modules"


@OUTER
def test_a_worker_learns_of_a_module_nothing_that_is_not_in_the_clear(outer):
    claims = planned_end(nets.chain(), outer).plan.claims()
    if outer == "enclave":
        assert claims.worst(Role.WORKER) is Extent.NOTHING
        return
    module = said(claims, Role.WORKER, "module")
    clear = outer in ("open", "verified")
    assert module.extent is (Extent.BOUNDED if clear else Extent.NOTHING)
    assert ("nothing of their weights" in module.text) == clear
    own = said(claims, Role.WORKER, "module", Verb.CAN)
    assert own.extent is (Extent.BOUNDED if outer in ("open", "blinded") else Extent.NOTHING)


def test_a_vendor_of_a_module_runs_code():
    claims = planned_end(nets.chain()).plan.claims()
    code = said(claims, Role.VENDOR, CODE, Verb.CAN)
    assert (code.extent, code.strength) == (Extent.BOUNDED, Strength.ASSUMED)
    assert claims.worst(Role.VENDOR) is Extent.NOTHING
    others = plan_of(nets.chain()).claims()
    assert [one.about for one in others.of(Role.VENDOR, Verb.CAN)] == [INPUTS]
    for role in (Role.HOST, Role.VENDOR):
        for verb in Verb:
            assert not any("module" in one.about for one in others.of(role, verb))


@pytest.mark.parametrize("outer", ["slalom", "verified", "blinded"])
def test_no_message_has_anything_of_a_module(outer):
    """What a worker is sent has neither weights nor names of the hidden part."""
    planned = planned_end(nets.residual(), outer, last=3)
    link = DirectLink()
    with (
        mock.patch.object(module_engines, "start_engine", Started()),
        Session(planned.plan, workers=[link], modules=planned.modules) as session,
    ):
        session.run(nets.samples(nets.residual(), 2))
    assert len(link.linears) == len(planned.plan.linear_nodes)
    sent = b"".join(linear.weights.tobytes() for linear in link.linears.values())
    for array in planned.hidden.constants.values():
        integers = np.round(array / max(np.abs(array).max(), 1e-9) * 2047).astype(np.int16)
        assert array.tobytes()[:12] not in sent
        assert integers.size < 8 or integers.tobytes()[:16] not in sent


def test_every_protection_has_its_statements_about_workers():
    for name, protection in BY_NAME.items():
        claims = claims_of("mixed", {"a": protection, "b": OPEN})
        for verb in Verb:
            assert said(claims, Role.WORKER, name, verb).text


def test_nothing_is_sent_to_a_vendor(monkeypatch):
    """From the model's file to the results, no connection is opened."""
    calls = Counter()
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, lambda *_, name=name: calls.update([name]))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: calls.update(["getaddrinfo"]))
    plan = plan_of(nets.chain())
    with Session(plan, workers=[DirectLink()]) as session:
        session.run(nets.samples(nets.chain(), 2))
    assert not calls
    vendor = said(plan.claims(), Role.VENDOR, INPUTS)
    assert vendor.extent is Extent.NOTHING
    assert "neither the trusted side nor a worker" in vendor.assumes
