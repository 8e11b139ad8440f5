"""A session whose trusted side is another machine gives what a session here gives."""

import socket
import warnings
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import nets
from bundle.bundles import KEY, SIGNER, VENDOR
from cloister.attest.appraiser import Appraiser
from cloister.attest.attested_client import AttestedClient
from cloister.attest.handshake import Verifier
from cloister.attest.handshake_messages import Direction
from cloister.attest.policy import Policy
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.base.rng import SystemRandom
from cloister.bundle.bundle_keys import BundleKey
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.errors import (
    AttestationError,
    BudgetError,
    ClipError,
    ClipWarning,
    InputError,
    PlanError,
    ProtocolError,
    RangeError,
    ServiceUnavailable,
    ShapeError,
    TicketError,
)
from cloister.plan import policies
from cloister.plan.claims import MEMORY, Extent, Role
from cloister.tickets.receipt import Receipt
from cloister.trusted import runtime_service
from cloister.trusted.hosted_session import BundleKeys, HostSettings
from cloister.trusted.metered_session import MeteredResult, bought_result
from cloister.trusted.packed_values import pack
from cloister.trusted.query_counter import QueryCounter
from cloister.trusted.runtime_service import RuntimeLimits, ServedBundle
from cloister.trusted.session import Session
from tickets.licences import MemoryCounter, meter, ticket
from trusted.modules import planned_end
from trusted.runtimes import MEASUREMENT, Played
from trusted.test_hosted_session import free_plan, images, plan_of
from trusted.test_output_kinds import (
    assert_same,
    graph_of,
    maps_of_names,
    normal,
    optional,
    other_first_axes,
    parts,
    text,
)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return Played(tmp_path_factory.mktemp("runtime") / "machine")


@pytest.fixture(scope="module")
def url(played):
    with played.serving(settings=HostSettings(batch=4)) as service:
        yield service.url


@pytest.fixture
def policy(played):
    return played.policy()


CHAIN = plan_of(nets.chain())
FEEDS = nets.samples(nets.chain(), 3)


def elsewhere(plan, url, policy, feeds, **options):
    with Session(plan, trusted=url, appraisal=policy, **options) as session:
        return session.run(feeds)


def test_a_run_elsewhere_gives_the_same_outputs_with_an_appraisal(url, policy):
    model = nets.residual()
    plan, feeds = plan_of(model), nets.samples(model, 20)
    with Session(plan) as session:
        expected = session.run(feeds)
        assert session.appraisal is None
        assert expected.report.to_dict()["appraisal"] is None
    calls = []
    with Session(plan, trusted=url, appraisal=policy) as session:
        found = session.run(feeds, progress=lambda done, total: calls.append((done, total)))
        assert session.appraisal is found.report.appraisal
    for name, value in expected.outputs.items():
        np.testing.assert_array_equal(found.outputs[name], value)
    assert calls[0] == (8, 20)
    assert calls[-1] == (20, 20)
    assert all(one < other for one, other in pairwise(calls))
    report = found.report
    assert (report.inputs, report.pads_used) == (20, expected.report.pads_used)
    assert [row.name for row in report.layers] == [r.name for r in expected.report.layers]
    assert found.transcript.nbytes() == expected.transcript.nbytes()
    assert report.hardware_rooted is False
    shown = report.to_dict()
    assert (shown["hardware_rooted"], shown["appraisal"]["format"]) == (False, "insecure-simulated")
    assert shown["appraisal"]["checks"]


def test_a_report_is_hardware_rooted_by_its_appraisal_alone(url, policy):
    report = elsewhere(CHAIN, url, policy, FEEDS).report

    class Rooted:
        hardware_rooted = True

    assert type(report)(**{**vars(report), "appraisal": Rooted()}).hardware_rooted is True
    with pytest.raises(AttributeError):
        report.hardware_rooted = True
    with pytest.raises(TypeError):
        type(report)(**vars(report), hardware_rooted=True)


@pytest.mark.parametrize("kind", [other_first_axes, parts, optional, maps_of_names, text])
def test_outputs_of_every_kind_cross(kind, url, policy):
    plan = policies.make("slalom", graph_of(kind().model()), calibration=normal(4, 3, seed=1))
    feeds = normal(5, 3, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipWarning)
        with Session(plan) as session:
            expected = session.run(feeds)
        found = elsewhere(plan, url, policy, feeds)
    assert list(found.outputs) == list(expected.outputs)
    for name, value in expected.outputs.items():
        assert_same(found.outputs[name], value, close=0)


def test_free_sizes_get_plans_there(url, policy):
    plan = free_plan()
    with Session(plan) as here, Session(plan, trusted=url, appraisal=policy) as there:
        for size in (8, 12, 9):
            expected, found = here.run(images(size)), there.run(images(size))
            for name, value in expected.outputs.items():
                np.testing.assert_array_equal(found.outputs[name], value)
        assert found.report.plans_made == 3


def test_items_of_an_iterator_several_inputs_and_no_input(url, policy):
    (name,) = FEEDS
    with Session(CHAIN, trusted=url, appraisal=policy, on_clip="ignore") as session:
        whole = session.run(FEEDS)
        streamed = session.run({name: one[None]} for one in FEEDS[name])
        empty = session.run({name: FEEDS[name][:0]})
    for key, value in whole.outputs.items():
        np.testing.assert_array_equal(streamed.outputs[key], value)
        assert empty.outputs[key].shape == (0, *value.shape[1:])
    assert (streamed.report.inputs, empty.report.inputs) == (3, 0)
    model = nets.several()
    plan, feeds = plan_of(model), nets.samples(model, 10)
    with Session(plan, on_clip="ignore") as session:
        expected = session.run(feeds)
    found = elsewhere(plan, url, policy, feeds, on_clip="ignore")
    for key, value in expected.outputs.items():
        np.testing.assert_array_equal(found.outputs[key], value)


def test_clipped_inputs_are_judged_as_a_whole(url, policy):
    far = {name: np.concatenate([value[:1]] * 9 + [50 * value]) for name, value in FEEDS.items()}
    with pytest.warns(ClipWarning, match=r"3 of 12 inputs \(the first: 9\)"):
        result = elsewhere(CHAIN, url, policy, far)
    assert result.report.inputs_beyond == (9, 10, 11)
    with pytest.raises(ClipError, match="nothing was released"):
        elsewhere(CHAIN, url, policy, far, on_clip="raise")
    assert elsewhere(CHAIN, url, policy, far, on_clip="ignore").report.inputs == 12


def test_errors_name_the_inputs_of_the_call(url, policy):
    (name,) = FEEDS
    bad = np.concatenate([FEEDS[name]] * 4)
    bad[9] = np.nan
    with Session(CHAIN, trusted=url, appraisal=policy) as session:
        with pytest.raises(RangeError, match=r"inputs 8 to 11: .*sample 1 contains NaN"):
            session.run({name: bad})
        with pytest.raises(ShapeError, match="inputs are"):
            session.run({"other": bad})
        assert session.run(FEEDS).report.inputs == 3


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("workers", ["gpu:7000"], "decided by the operator"),
        ("threads", 2, "decided by the operator"),
        ("batch", 3, "decided by the operator"),
        ("timeout_s", 5.0, "decided by the operator"),
        ("engine", "wasm", "decided by the operator"),
        ("pads", object(), "makes its pads itself"),
        ("makers", ["m:1"], "makes its pads itself"),
        ("insecure_plaintext", True, "makers of pads"),
        ("record_payloads", True, "the transcript has their sizes"),
        ("modules", {}, "modules of the bundle"),
    ],
)
def test_what_that_machine_decides_is_refused_here(option, value, said, policy):
    with pytest.raises(PlanError, match=f"{option}= with trusted=: .*{said}"):
        Session(CHAIN, trusted="https://127.0.0.1:1", appraisal=policy, **{option: value})


def test_a_machine_and_what_it_has_to_prove_go_together(policy):
    with pytest.raises(PlanError, match="give trusted="):
        Session(CHAIN, appraisal=policy)
    with pytest.raises(InputError, match=r"policy\.toml"):
        Session(CHAIN, trusted="https://127.0.0.1:1", appraisal="policy.toml")
    for other in (None, {}):
        with pytest.raises(PlanError, match="trusted= needs appraisal="):
            Session(CHAIN, trusted="https://127.0.0.1:1", appraisal=other)
    with pytest.raises(InputError, match="https://HOST:PORT"):
        Session(CHAIN, trusted="gpu:7000", appraisal=policy)


def test_a_machine_that_is_not_there_is_named(policy, monkeypatch):
    monkeypatch.setattr("cloister.trusted.remote_session.RETRY_FOR_S", 0.1)
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:9: cannot be reached"):
        Session(CHAIN, trusted="https://127.0.0.1:9", appraisal=policy)


def test_a_machine_that_the_policy_refuses_is_refused_with_the_field(url, played):
    with pytest.raises(
        AttestationError, match=r"measurement: expected .*cd.*, found .*abab.*; the"
    ):
        Session(CHAIN, trusted=url, appraisal=played.policy(measurements=["cd" * 48]))
    other = Policy.of({"sev-snp": {"measurements": [MEASUREMENT]}})
    with pytest.raises(AttestationError, match=r"no section \[insecure-simulated\]"):
        Session(CHAIN, trusted=url, appraisal=other)
    pinned = played.policy(runtime={"manifests": ["00" * 32]})
    with pytest.raises(AttestationError, match="manifest: expected"):
        Session(CHAIN, trusted=url, appraisal=pinned)
    pinned = played.policy(runtime={"manifests": [played.manifest.digest.hex()]})
    with Session(CHAIN, trusted=url, appraisal=Appraiser(pinned)) as session:
        assert session.appraisal.manifest == played.manifest.digest


def test_a_runtime_with_an_environment_is_refused(tmp_path):
    manifest = RuntimeManifest("1.0", (), {"LD_PRELOAD": "x.so"})
    played = Played(tmp_path / "machine", manifest=manifest)
    with (
        played.serving() as service,
        pytest.raises(AttestationError, match="environment: expected none, found LD_PRELOAD"),
    ):
        Session(CHAIN, trusted=service.url, appraisal=played.policy())


def test_a_machine_that_stops_ends_its_sessions_with_a_clear_error(played, policy, monkeypatch):
    monkeypatch.setattr("cloister.trusted.remote_session.RETRY_FOR_S", 0.1)
    with played.serving() as service:
        session = Session(CHAIN, trusted=service.url, appraisal=policy)
        session.run(FEEDS)
    with pytest.raises(ServiceUnavailable, match=r"cannot be reached.*is it running"):
        session.run(FEEDS)
    session.close()
    with pytest.raises(PlanError, match="session is closed"):
        session.run(FEEDS)


def test_a_machine_that_is_gone_without_a_word_is_noticed_while_an_answer_is_awaited(url, policy):
    with Session(CHAIN, trusted=url, appraisal=policy) as session:
        sock = session._remote._client._https._connection.sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, between, probes = (
            sock.getsockopt(socket.IPPROTO_TCP, one)
            for one in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + between * probes <= 60


def test_claims_name_the_operator_of_that_machine(url, policy):
    with Session(CHAIN, trusted=url, appraisal=policy) as session:
        claims = session.claims()
    (memory,) = [s for s in claims.statements if s.about == MEMORY and s.verb == "learns"]
    assert (memory.role, memory.extent) == (Role.HOST, Extent.EVERYTHING)
    assert "insecure-simulated" in claims.subject


# ---- callers beside each other


def test_two_callers_have_sessions_of_their_own(played, policy):
    with played.serving() as service:
        one = Session(CHAIN, trusted=service.url, appraisal=policy)
        other = Session(CHAIN, trusted=service.url, appraisal=policy)
        callers = list(service._callers.values())
        assert len({caller._session.pid for caller in callers}) == 2
        assert len(service._files._known) == 1  # one copy of equal plans
        one.close()
        assert other.run(FEEDS).report.inputs == 3
        other.close()
        assert not service._callers
        assert not service._files._known
        assert service._allowance._left == service._limits.plans_bytes


def test_a_plan_beyond_the_limits_is_refused_and_gives_its_memory_back(played, policy):
    small = RuntimeLimits(plan_bytes=1000)
    with (
        played.serving(limits=small) as service,
        pytest.raises(PlanError, match=r"at most 1000; ask its operator for more \(--plan-gib\)"),
    ):
        Session(CHAIN, trusted=service.url, appraisal=policy)
    size = len(CHAIN.to_bytes())
    with played.serving(limits=RuntimeLimits(plans_bytes=size + 10)) as service:
        with Session(CHAIN, trusted=service.url, appraisal=policy) as session:
            with pytest.raises(InputError, match="--plans-gib"):
                Session(plan_of(nets.residual()), trusted=service.url, appraisal=policy)
            assert session.run(FEEDS).report.inputs == 3
        Session(CHAIN, trusted=service.url, appraisal=policy).close()


def test_no_more_sessions_than_there_may_be(played, policy):
    with played.serving(limits=RuntimeLimits(sessions=1)) as service:
        with Session(CHAIN, trusted=service.url, appraisal=policy) as session:
            with pytest.raises(ServiceUnavailable, match="as many sessions as it may"):
                Session(CHAIN, trusted=service.url, appraisal=policy)
            assert session.run(FEEDS).report.inputs == 3
        Session(CHAIN, trusted=service.url, appraisal=policy).close()


# ---- bundles


@contextmanager
def serving_bundle(tmp_path, *, metered=False, license_name=None):
    """A machine that serves a bundle of six queries, or one that a ticket meters."""
    made = planned_end(nets.chain(), queries=None if metered else 6)
    path = tmp_path / "net.bundle"
    header = SealedBundle.seal(
        path, made.plan, made.module, content_key=KEY, signer=SIGNER, version=1, rng=SystemRandom()
    )
    counter = None if metered else QueryCounter.create(tmp_path / "queries").path
    key = BundleKey.derive(KEY, bundle_id=header.bundle_id).key
    public = VENDOR.public_bytes_raw()
    keys = BundleKeys(path, header.bundle_id, key, public, "onnxruntime", counter)
    paid = None
    if metered:
        bought = ticket(bundle_id=header.bundle_id)
        paid = meter(tmp_path / "meter", bought, bundle=header, counter=MemoryCounter())
        license_name = license_name or bought.license
    manifest = RuntimeManifest("1.0", (), bundle=header.bundle_id.hex(), license=license_name or "")
    played = Played(tmp_path / "machine", manifest=manifest)
    with played.serving(bundle=ServedBundle(made.plan, keys, paid)) as service:
        yield service, played.policy(), made, paid


@pytest.fixture
def bundled(tmp_path):
    with serving_bundle(tmp_path) as (service, policy, made, _):
        yield service.url, policy, made


def test_the_hidden_end_of_a_bundle_runs_there(bundled):
    url, policy, made = bundled
    with Session(made.plan, trusted=url, appraisal=policy) as session:
        found = session.run(FEEDS)
        assert (found.report.queries_used, found.report.queries_left) == (3, 3)
        with pytest.raises(BudgetError):
            session.run({name: np.concatenate([value, value]) for name, value in FEEDS.items()})
        assert session.run(FEEDS).report.queries_left == 0


def test_a_machine_with_a_bundle_runs_no_other_plan(bundled, url, policy):
    there, asked, made = bundled
    with pytest.raises(PlanError, match=r"runs bundle [0-9a-f]{32} alone"):
        Session(CHAIN, trusted=there, appraisal=asked)
    other = planned_end(nets.chain(), queries=7)
    with pytest.raises(PlanError, match="of its bundle alone, not"):
        Session(other.plan, trusted=there, appraisal=asked)
    with pytest.raises(PlanError, match="serves no bundle that has its module"):
        Session(made.plan, trusted=url, appraisal=policy)


# ---- tickets


@pytest.fixture
def metered(tmp_path):
    with serving_bundle(tmp_path, metered=True) as found:
        yield found


def test_outputs_are_bought_with_a_ticket_and_come_with_a_receipt(metered):
    service, policy, made, paid = metered
    (name,) = made.plan.graph.outputs
    with Session(made.plan, trusted=service.url, appraisal=policy) as session:
        result = session.run(FEEDS)
        assert isinstance(result, MeteredResult)
        (given,) = FEEDS
        again = session.run({given: one[None]} for one in FEEDS[given])
    plain = made.whole.outputs[0]
    assert result.outputs[name].dtype == np.int64
    assert result.outputs[name].shape == (3,)
    np.testing.assert_array_equal(again.outputs[name], result.outputs[name])
    assert plain == name
    assert result.report.appraisal.manifest is not None
    receipts = [Receipt.verify(one.receipt.data, signer=signer(paid)) for one in (result, again)]
    assert [one.serials for one in receipts] == [range(100, 103), range(103, 106)]
    assert paid.left() == 4


def signer(paid):
    return Ed25519PublicKey.from_public_bytes(paid.receipt_key)


def test_what_a_ticket_does_not_buy_is_not_computed(metered):
    service, policy, made, paid = metered
    many = {name: np.concatenate([value] * 4) for name, value in FEEDS.items()}
    with Session(made.plan, trusted=service.url, appraisal=policy) as session:
        with pytest.raises(BudgetError, match="10 of its 10 outputs are left, and 12"):
            session.run(many)
        assert paid.left() == 10
        paid.spend(10, bytes(32))
        with pytest.raises(BudgetError, match="0 of its 10 outputs"):
            session.run(FEEDS)


def test_a_caller_that_says_less_than_it_asks_for_gets_nothing(metered):
    service, policy, made, paid = metered
    paid.spend(8, bytes(32))
    start = partial(Verifier, Appraiser(policy), direction=Direction.CALLEE, rng=SystemRandom())
    with AttestedClient(service.url, start=start) as client:
        client.call("open", {"digest": made.plan.digest.hex()})
        data = (np.frombuffer(pack(FEEDS), np.uint8),)
        with pytest.raises(BudgetError, match="2 of its 10 outputs are left, and 3"):
            client.call("run", {"inputs": 1}, data)
        with pytest.raises(ProtocolError, match="'inputs'"):
            client.call("run", {}, data)
    assert paid.left() == 2


@pytest.mark.parametrize("change", ["no receipt", "other outputs"])
def test_outputs_without_their_receipt_are_refused(change, metered, monkeypatch):
    service, policy, made, _ = metered

    def bought(result, meter, *, rng):
        if change == "no receipt":
            return result
        found = bought_result(result, meter, rng=rng)
        (value,) = found.outputs.values()
        value[0] += 1
        return found

    monkeypatch.setattr(runtime_service, "bought_result", bought)
    with (
        Session(made.plan, trusted=service.url, appraisal=policy) as session,
        pytest.raises(TicketError, match="receipt"),
    ):
        session.run(FEEDS)


def test_a_manifest_and_a_key_of_receipts_go_together(tmp_path):
    with (
        serving_bundle(tmp_path, license_name="acme") as (service, policy, made, _),
        pytest.raises(ProtocolError, match="contradict each other"),
    ):
        Session(made.plan, trusted=service.url, appraisal=policy)
