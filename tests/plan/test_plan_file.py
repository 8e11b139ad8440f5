"""Plans as canonical bytes: what they keep, what they refuse, and who made them where."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cloister.base._native as native
import nets
import unequal
from cloister.errors import CloisterError, InputError, PlanError
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.graph.split import split_points
from cloister.plan import plan_file, policies
from cloister.plan.plan import Plan
from cloister.plan.planned_split import PlannedSplit, SplitEvidence
from cloister.plan.protection import BLINDED_VERIFIED, BY_NAME, ENCLAVE, OPEN, VERIFIED, Protection
from cloister.plan.quantised import Precision
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from graph.test_graph_file import canonical, changed, document_of, with_document

NETS = {**nets.ALL, "choosing": nets.choosing}


def planned(build, policy="slalom", precision=None):
    model = build()
    graph = prepare(from_model(model, name="net"))
    samples = nets.samples(model, 4)
    return policies.make(policy, graph, calibration=samples, precision=precision), samples


def outputs(plan, samples):
    with Session(plan, workers=[InProcessLink(Engine().handle)], on_clip="ignore") as session:
        return session.run(samples).outputs


@pytest.mark.parametrize("policy", policies.NAMES)
@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_a_plan_comes_back_whole(build, policy, tmp_path):
    plan, samples = planned(build, policy, Precision(11, 10))
    plan.save(tmp_path / "a.plan")
    data = (tmp_path / "a.plan").read_bytes()
    assert plan.to_bytes() == data
    for again in (Plan.load(tmp_path / "a.plan"), Plan.from_bytes(data)):
        assert again.to_bytes() == data
        assert again.digest == plan.digest == hashlib.sha256(data).digest()
        assert again.claims() == plan.claims()
        assert (again.policy, again.protections) == (plan.policy, plan.protections)
        assert (again.precision, again.ranges) == (plan.precision, plan.ranges)
        for one, other in zip(again.linear_nodes, plan.linear_nodes, strict=True):
            assert (one.node, one.x_scale, one.x_qmax) == (other.node, other.x_scale, other.x_qmax)
            assert (one.bound, one.weight_bits) == (other.bound, other.weight_bits)
            assert one.linear.geometry == other.linear.geometry
            np.testing.assert_array_equal(one.linear.weights, other.linear.weights)
    if build is nets.choosing and policy == "open":
        return  # the shape of a choice is not known, so no worker may answer it
    wanted, found = outputs(plan, samples), outputs(again, samples)
    for name in plan.graph.outputs:
        np.testing.assert_array_equal(found[name], wanted[name])


def test_factors_of_input_channels_come_back():
    model = unequal.table()
    graph = prepare(from_model(model, name="net"))
    plan = policies.make("slalom", graph, calibration=unequal.samples(model, 16))
    again = Plan.from_bytes(plan.to_bytes())
    factors = [node.x_factors for node in again.linear_nodes]
    assert any(one is not None for one in factors)
    for one, node in zip(factors, plan.linear_nodes, strict=True):
        if one is None:
            assert node.x_factors is None
        else:
            np.testing.assert_array_equal(one, node.x_factors)


def test_float_weights_and_the_model_s_name_are_left_out():
    plan, _ = planned(nets.residual)
    assert plan.without_float_weights().to_bytes() == plan.to_bytes()
    renamed = dataclasses.replace(plan, graph=dataclasses.replace(plan.graph, name="other"))
    assert renamed.digest == plan.digest
    again = Plan.from_bytes(plan.to_bytes())
    assert not again.float_weights
    sizes = {name: array.size for name, array in plan.graph.constants.items()}
    dropped = [name for name, array in again.graph.constants.items() if not any(array.strides)]
    assert sum(sizes[name] for name in dropped if sizes[name] > 1) > sum(sizes.values()) / 2


def test_other_calibrations_policies_and_bits_make_other_plans():
    model = nets.chain()
    graph = prepare(from_model(model, name="net"))
    digests = {
        policies.make(
            policy, graph, calibration=nets.samples(model, count), precision=precision
        ).digest
        for policy in ("slalom", "verified")
        for count in (1, 20)
        for precision in (Precision(), Precision(12, 11))
    }
    assert len(digests) == 8


@pytest.mark.parametrize("policy", policies.NAMES)
def test_the_ranges_in_a_plan_make_it_again(policy):
    plan, _ = planned(nets.residual, policy, Precision(11, 10))
    stored = Plan.from_bytes(plan.to_bytes())
    again = policies.from_ranges(
        policy, plan.graph, ranges=stored.ranges, precision=stored.precision
    )
    assert again.digest == plan.digest


def test_samples_are_needed():
    graph = prepare(from_model(nets.chain(), name="net"))
    with pytest.raises(PlanError, match="needs calibration"):
        policies.make("slalom", graph)


def test_ranges_of_another_model():
    graph = prepare(from_model(nets.chain(), name="net"))
    with pytest.raises(PlanError, match="belongs to another model"):
        policies.from_ranges("slalom", graph, ranges={"elsewhere": (1.0,)})
    ranges = {node.name: (1.0,) for node in graph.nodes}
    policies.from_ranges("slalom", graph, ranges=ranges)
    with pytest.raises(PlanError, match="2 ranges for 3 input channels"):
        policies.from_ranges("slalom", graph, ranges={**ranges, "Conv_0": (1.0, 2.0)})


def test_a_protection_is_written_by_its_fields():
    """With another field, VERSION is another one, or one version would say two things."""
    assert plan_file.VERSION == 2
    assert [one.name for one in dataclasses.fields(Protection)] == ["input", "checked", "weights"]
    written = [plan_file._protection(one) for one in BY_NAME.values()]
    assert {"input": "BLINDED", "checked": False, "weights": "PUBLIC"} in written
    assert len({str(one) for one in written}) == len(BY_NAME)


# ---- pinned or not


def test_a_plan_is_pinned_by_its_digest_or_policy(tmp_path):
    path = tmp_path / "a.plan"
    plan, _ = planned(nets.chain, "verified")
    plan.save(path)
    assert Plan.load(path, policy="verified", digest=plan.digest).digest == plan.digest
    with pytest.raises(PlanError, match="policy verified, and slalom is wanted"):
        Plan.load(path, policy="slalom")
    with pytest.raises(PlanError, match=r"a\.plan: is not the plan 0000"):
        Plan.load(path, digest=bytes(32))
    with pytest.raises(PlanError, match=r"bytes\.fromhex"):
        Plan.load(path, digest=plan.digest.hex())


def test_nothing_of_another_plan_is_read_before_its_digest(tmp_path):
    path = tmp_path / "a.plan"
    plan, _ = planned(nets.chain)
    data = plan.to_bytes()
    path.write_bytes(with_document(data, b"[" * 100_000))
    with pytest.raises(PlanError, match="is not the plan"):
        Plan.load(path, digest=plan.digest)
    with pytest.raises(InputError, match="not a plan that can be read"):
        Plan.load(path)


def test_missing_files_and_other_kinds(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Plan.load(tmp_path / "none.plan")
    with pytest.raises(InputError, match="not a plan that can be read"):
        Plan.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.plan")
    with pytest.raises(InputError, match="not a regular file"):
        Plan.load(tmp_path / "pipe.plan")
    with (tmp_path / "large.plan").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="it has 1099511627776 B"):
        Plan.load(tmp_path / "large.plan")


# ---- plans that contradict themselves


@pytest.fixture(scope="module")
def data() -> bytes:
    return planned(nets.residual)[0].to_bytes()


def field(protection):
    return plan_file._protection(protection)


NODE = "Conv_0"
ODD = {
    "another policy": (("policy",), "open"),
    "a policy that checks less": (("policy",), "blinded"),
    "a name that does not print": (("policy",), "own\x1b[2J"),
    "a node that is weaker than its policy": (("protections", NODE), field(VERIFIED)),
    "a node in the clear": (("protections", NODE), field(OPEN)),
    "a node inside that has integers": (("protections", NODE), field(ENCLAVE)),
    "a node that is not linear": (("protections", "Relu_1"), field(BLINDED_VERIFIED)),
    "a protection that is none": (("protections", NODE), {"hidden": True}),
    "a protection with another field": (("protections", NODE),
                                        {**field(BLINDED_VERIFIED), "more": True}),
    "truth as a number": (("protections", NODE), {**field(BLINDED_VERIFIED), "checked": 1}),
    "no protections": (("protections",), {}),
    "a node that the model lacks": (("protections", "nobody"), field(ENCLAVE)),
    "no integers": (("quantised",), {}),
    "bits that none has": (("precision",), [99, 12]),
    "bits as a fraction": (("precision",), [12.0, 12]),
    "a range that is no list": (("ranges", NODE), 1.0),
    "a negative range": (("ranges", NODE), [-1.0]),
    "a range that is no number": (("ranges", NODE), [float("nan")]),
    "an infinite range": (("ranges", NODE), [1e39]),
    "a whole range": (("ranges", NODE), [1]),
    "an input scale of zero": (("quantised", NODE, "x_scale"), 0.0),
    "a negative input scale": (("quantised", NODE, "x_scale"), -1.0),
    "an input scale of no inverse": (("quantised", NODE, "x_scale"), 1e-45),
    "an infinite input scale": (("quantised", NODE, "x_scale"), float("inf")),
    "an input scale beyond float32": (("quantised", NODE, "x_scale"), 1e300),
    "an input scale of more bits": (("quantised", NODE, "x_scale"), 0.1),
    "no levels": (("quantised", NODE, "x_qmax"), 0),
    "more levels than bits": (("quantised", NODE, "x_qmax"), 2**13),
    "sums that may wrap": (("quantised", NODE, "x_qmax"), 2**13 - 1),
    "weights of another type": (("quantised", NODE, "weights"), [1, [8, 3, 3, 3]]),
    "weights of another shape": (("quantised", NODE, "weights"), [5, [8, 3, 3, 2]]),
    "a scale of another shape": (("quantised", NODE, "scale"), [1, [9]]),
    "factors of another shape": (("quantised", NODE, "factors"), [1, [1, 1, 9]]),
    "a float weight that is needed": (("graph", "constants", "c1"), [1, [8, 3, 3, 3]]),
    "a version of the model": (("graph", "opset"), "17"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "value"), ODD.values(), ids=ODD)
def test_what_no_plan_says_is_refused(data, path, value):
    document = document_of(data)
    assert set(document["quantised"]) >= {NODE}
    changed(document, path, value)
    if path[-1] == "x_qmax" and value == 2**13 - 1:
        # As many as fit 14 bits: with weights at their largest, the sums would not.
        start = with_document(data, canonical(document))
        at = start.index(planned(nets.residual)[0].quantised[NODE].linear.weights.tobytes())
        size = planned(nets.residual)[0].quantised[NODE].linear.weights.nbytes
        wrapping = start[:at] + b"\xff\x7f" * (size // 2) + start[at + size :]
        with pytest.raises(PlanError, match="wrap"):
            Plan.from_bytes(wrapping)
        return
    with pytest.raises(CloisterError):
        Plan.from_bytes(with_document(data, canonical(document)))


SPLIT_EVIDENCE = SplitEvidence(
    bytes(range(32)), ("gan", "ridge"), "faces", "ab" * 32, 200, 50, 0.03, 0.05, -0.25
)


def split_plan(evidence=SPLIT_EVIDENCE):
    graph = prepare(from_model(nets.residual(), name="net"))
    (first, *_) = split_points(graph)
    samples = nets.samples(nets.residual(), 4)
    split = PlannedSplit(first.until, evidence)
    return policies.make("origami", graph, calibration=samples, split=split)


def test_a_split_comes_back_whole():
    """Its evidence is part of the digest."""
    plans = [split_plan(), split_plan(None)]
    plans += [
        split_plan(dataclasses.replace(SPLIT_EVIDENCE, **change))
        for change in ({"report": bytes(32)}, {"images": 201}, {"ssim": 0.06}, {"data": "digits"})
    ]
    for plan in plans:
        again = Plan.from_bytes(plan.to_bytes())
        assert again.split == plan.split
        assert again.digest == plan.digest
        assert again.claims() == plan.claims()
    assert len({plan.digest for plan in plans}) == len(plans)


EVIDENCE = ("split", "evidence")
ODD_SPLITS = {
    "no split": (("split",), None),
    "a split without nodes": (("split", "until"), []),
    "a split at no node": (("split", "until"), ["nobody"]),
    "a split that is a text": (("split", "until"), "Relu_1"),
    "a split behind the last layer": (("split", "until"), ["Gemm_17"]),
    "evidence that is a text": (EVIDENCE, "all is well"),
    "half a report": ((*EVIDENCE, "report"), "00" * 16),
    "a report with a space": ((*EVIDENCE, "report"), " ".join(["00" * 16] * 2)),
    "capital digits": ((*EVIDENCE, "report"), "AB" * 32),
    "no attack": ((*EVIDENCE, "attacks"), []),
    "attacks as one text": ((*EVIDENCE, "attacks"), "gan"),
    "an attack that does not print": ((*EVIDENCE, "attacks"), ["\x1b[2J"]),
    "data that do not print": ((*EVIDENCE, "data"), "faces\n"),
    "no data": ((*EVIDENCE, "data"), ""),
    "fewer images than candidates": ((*EVIDENCE, "images"), 49),
    "one candidate": ((*EVIDENCE, "candidates"), 1),
    "no candidates": ((*EVIDENCE, "candidates"), 0),
    "candidates as a fraction": ((*EVIDENCE, "candidates"), 50.0),
    "more than all": ((*EVIDENCE, "identification"), 1.5),
    "less than none": ((*EVIDENCE, "identification"), -0.1),
    "no number": ((*EVIDENCE, "ssim"), float("nan")),
    "a whole number": ((*EVIDENCE, "ssim"), 0),
    "endlessly little": ((*EVIDENCE, "explained"), float("-inf")),
    "more than everything": ((*EVIDENCE, "explained"), 1.1),
    "another policy": (("policy",), "origami-none"),
    "a policy without a split": (("policy",), "verified"),
}


@pytest.mark.parametrize(("path", "value"), ODD_SPLITS.values(), ids=ODD_SPLITS)
def test_what_no_split_says_is_refused(path, value):
    data = split_plan().to_bytes()
    document = document_of(data)
    changed(document, path, value)
    with pytest.raises(CloisterError):
        Plan.from_bytes(with_document(data, canonical(document)))


def test_numbers_that_are_none_are_refused():
    plan, _ = planned(nets.chain)
    node = plan.linear_nodes[0]
    odd = np.full_like(node.scale, np.nan)
    factors = np.full((1, 1, node.linear.geometry.in_channels), 3, np.float32)
    for change in ({"scale": odd}, {"bias": odd / 0}, {"x_factors": factors}):
        other = dataclasses.replace(node, **change)
        data = dataclasses.replace(plan, quantised={**plan.quantised, node.node: other}).to_bytes()
        with pytest.raises(InputError, match=f"node '{node.node}'"):
            Plan.from_bytes(data)


def test_integers_of_another_geometry_are_refused():
    plan, _ = planned(nets.residual)
    node = plan.linear_nodes[0]
    shape = dataclasses.replace(node.linear.geometry, pad=(0, 0))
    linear = dataclasses.replace(node.linear, geometry=shape)
    other = {**plan.quantised, node.node: dataclasses.replace(node, linear=linear)}
    with pytest.raises(PlanError, match="another geometry"):
        dataclasses.replace(plan, quantised=other)


def test_a_policy_of_one_s_own_says_what_it_does():
    plan, _ = planned(nets.chain)
    node = plan.linear_nodes[0].node
    protections = {**plan.protections, node: VERIFIED}
    with pytest.raises(PlanError, match="policy 'slalom' gives no node the protection verified"):
        dataclasses.replace(plan, protections=protections)
    mixed = dataclasses.replace(plan, policy="mixed", protections=protections)
    again = Plan.from_bytes(mixed.to_bytes())
    assert again.claims() == mixed.claims()
    assert str(again.claims()) != str(plan.claims())


# ---- other machines

FOLDER = Path(__file__).parents[1]
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import cloister.base._native as native
if sys.argv[4]:
    native.force_isa(sys.argv[4])
import cloister
with np.load(sys.argv[3]) as file:
    samples = dict(file)
if sys.argv[2].endswith(".plan"):
    sys.modules.update(onnx=None, grpc=None)
    plan = cloister.Plan.load(sys.argv[2])
else:
    plan = cloister.policies.slalom(cloister.load(sys.argv[2]), calibration=samples)
with cloister.Session(plan, on_clip="ignore") as session:
    found = session.run(samples).outputs
print(plan.digest.hex())
for name in sorted(found):
    print(name, found[name].tobytes().hex())
"""
NO_AVX512 = "X86_V4 AVX512_ICL"
CPUS = {
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "Zen": {"OPENBLAS_CORETYPE": "Zen"},
    "Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "no AVX-512": {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": NO_AVX512},
    "no AVX2": {
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL X86_V3",
    },
}


def on_another_machine(file, samples, isa, environment):
    ran = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", SCRIPT, FOLDER, file, samples, isa],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, its samples, its plan, and what this machine makes of it."""
    folder = tmp_path_factory.mktemp("machines")
    model = nets.residual()
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "x.npz", **nets.samples(model, 4))
    plan, _ = planned(nets.residual)
    plan.save(folder / "net.plan")
    told = on_another_machine(folder / "net.plan", folder / "x.npz", "", {})
    assert told.startswith(plan.digest.hex())
    return folder, told


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("cpu", CPUS)
def test_a_plan_runs_with_the_same_bits_on_every_machine(place, cpu, isa):
    folder, told = place
    assert on_another_machine(folder / "net.plan", folder / "x.npz", isa, CPUS[cpu]) == told


@pytest.mark.parametrize("cpu", CPUS)
def test_a_plan_is_made_with_the_same_bits_whatever_numpy_and_blas_use(place, cpu):
    folder, told = place
    isa = native.available_isas()[0]
    assert on_another_machine(folder / "net.onnx", folder / "x.npz", isa, CPUS[cpu]) == told
