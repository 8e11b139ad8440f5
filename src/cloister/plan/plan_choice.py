"""A caller's choice of a plan: made from a model, or read from a file.

The writer of a plan's file decides what is computed. The file decides what is protected only if its
digest is pinned, by the caller or by the key file of a pad store. Otherwise its policy has to be
one of Cloister's, and the one that the caller names, or the default; and where it is split, the
caller has to name the split too, or an audit's report that does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloister.errors import InputError
from cloister.graph.batch import stated_sizes
from cloister.graph.graph import Graph
from cloister.graph.input_files import Inputs
from cloister.graph.onnx.specialise import specialise
from cloister.plan import policies
from cloister.plan.plan import SUFFIX, Plan
from cloister.plan.protection import OUTSOURCED, SPLITTING, hiding, outer_policy, protections_of
from cloister.plan.quantised import Precision, Ranges
from cloister.plan.samples import Samples
from cloister.plan.split_choice import SplitChoice, SplitRequest, split_line
from cloister.plan.split_report import SplitReport

DEFAULT_POLICY = "slalom"
SELF_CALIBRATION = 64
"""Inputs that set the ranges if no calibration set is named."""


def is_plan_file(model: str) -> bool:
    """Whether an argument names a plan instead of a model."""
    return model.endswith(SUFFIX)


@dataclass(frozen=True)
class PlanChoice:
    """The caller's decisions; None leaves one to a stored plan, or else to the default.

    digest   the plan must have this digest, in hexadecimal digits
    split    where a policy that has a split stops to hide values
    inside   the linear nodes that stay inside; None: those that are cheaper there
    """

    policy: str | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    digest: str | None = None
    split: SplitRequest = field(default_factory=SplitRequest)
    inside: frozenset[str] | None = None

    def load(self, path: Path) -> tuple[Plan, str]:
        """The plan in a file, and one line that says which.

        Raises   InputError, PlanError when it is not of the policy or not the one that is wanted
        """
        self._refuse_bits()
        # Nothing of a file is read before its digest was compared.
        plan = Plan.load(path, digest=None if self.digest is None else read_digest(self.digest))
        return self._accepted(plan, path, pinned=self.digest is not None)

    def accept(self, plan: Plan, path: Path) -> tuple[Plan, str]:
        """A plan of which a signature in its file was verified, and one line that says which.

        The signature pins the plan: its policy is the one of the file, unless the caller names one.

        Raises   InputError, PlanError when it is not of the policy or not the one that is wanted
        """
        self._refuse_bits()
        return self._accepted(self._pinned(plan), path, pinned=True)

    def _refuse_bits(self) -> None:
        for option, bits in (
            ("--weight-bits", self.weight_bits), ("--activation-bits", self.activation_bits),
        ):  # fmt: skip
            if bits is not None:
                raise InputError(f"{option}: is decided by the plan; leave it out")

    def _accepted(self, plan: Plan, path: Path, *, pinned: bool) -> tuple[Plan, str]:
        if not pinned and protections_of(plan.policy) is None:
            raise InputError(
                f"{path}: its policy {plan.policy} is the file's own, and its name says nothing "
                "about what is protected; pin the plan with --digest"
            )
        named = self.split.policy(self.policy)
        plan.require_policy(named or (plan.policy if pinned else DEFAULT_POLICY), what=str(path))
        self.split.confirm(plan, what=str(path), pinned=pinned)
        line = f"plan {plan.digest.hex()} from {path}"
        if plan.split is not None:
            line += f", {split_line(plan.split)}"
        return plan, line

    def make(
        self,
        graph: Graph,
        *,
        calibration: Inputs | None = None,
        inputs: Inputs | None = None,
        stored: Plan | None = None,
        whole: Graph | None = None,
        audit: SplitReport | None = None,
    ) -> tuple[Plan, str]:
        """The plan of a model, and one line that says where its ranges come from.

        If the model has a hidden part, the policy is that of the nodes before it.

        calibration   typical inputs that set the ranges
        inputs        the inputs of this run: they set the ranges where nothing else does
        stored        the plan of a pad store, for which its key file vouches: without
                      `calibration`, it gives the ranges, the split and what the caller leaves open
        whole         of a model with a hidden part, the model itself, which an audit names
        audit         of this model's splits: without `calibration` it gives the ranges of a plan
                      that has no split either

        Warns (PrecisionWarning) when a layer's error on the samples exceeds a bound; there are no
        samples when the ranges are those of a stored plan.

        Raises   InputError without samples where they are needed, and for what the policy does not
                 use; PlanError for a split that its audit does not accept
        """
        if calibration is not None:
            stored = None
        if stored is not None:
            graph = _sized_as(graph, stored.graph)
        given = stored.precision if stored else Precision()
        precision = Precision(
            given.weight_bits if self.weight_bits is None else self.weight_bits,
            given.activation_bits if self.activation_bits is None else self.activation_bits,
        )
        named = self.split.policy(self.policy)
        wanted = named or (stored.policy if stored else DEFAULT_POLICY)
        outer = outer_policy(wanted) or wanted
        if any(node.is_module for node in graph.nodes):
            wanted = hiding(outer)
        if not policies.needs_ranges(wanted):
            self._refuse_fixed_point(wanted, calibration)
        chosen = self._split(graph, wanted, stored, whole)
        split, said = chosen.split, f"{chosen.line}; " if chosen.line else ""
        ranges, origin = _ranges(stored, (chosen.report or audit) if calibration is None else None)
        if ranges is not None:
            plan = policies.from_ranges(
                wanted, graph, ranges=ranges, precision=precision, split=split, inside=self.inside
            )
            return self._pinned(plan), said + origin
        samples = None
        if policies.needs_ranges(wanted):
            samples, origin = _samples(calibration, inputs)
        # A worker learns channel scales as powers of two: never those of inputs to be hidden.
        hidden = outer in SPLITTING or (outer in OUTSOURCED and OUTSOURCED[outer].hidden)
        plan = policies.make(
            wanted,
            graph,
            calibration=samples,
            precision=precision,
            by_channel=calibration is not None or not hidden,
            split=split,
            inside=self.inside,
        )
        return self._pinned(plan), said + origin

    def _split(
        self, graph: Graph, policy: str, stored: Plan | None, whole: Graph | None
    ) -> SplitChoice:
        """Where the plan is split: where that of a pad store is, or as the caller chooses."""
        splits = (outer_policy(policy) or policy) in SPLITTING
        if stored is None or not (splits or stored.split):
            return self.split.choose(policy, graph, audited=whole)
        stored.require_policy(policy, what="the pad store")
        self.split.confirm(stored, what="the pad store", pinned=True)
        return SplitChoice(stored.split, None, "")

    def _refuse_fixed_point(self, policy: str, calibration: Inputs | None) -> None:
        for option, given in (
            ("--calibration", calibration),
            ("--weight-bits", self.weight_bits),
            ("--activation-bits", self.activation_bits),
        ):
            if given is not None:
                raise InputError(
                    f"{option}: policy {policy} computes everything in float32; leave it out"
                )

    def _pinned(self, plan: Plan) -> Plan:
        if self.digest is not None and plan.digest.hex() != self.digest.lower():
            raise InputError(f"--digest {self.digest}: the plan is {plan.digest.hex()}")
        return plan


def read_digest(text: str) -> bytes:
    """A plan's digest as `cloister plan` prints it.

    Raises   InputError
    """
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InputError(
            f"--digest {text}: the plan is named by 64 hexadecimal digits, which `cloister plan` "
            "prints"
        ) from None


def _sized_as(graph: Graph, stored: Graph) -> Graph:
    """The model with the sizes that a stored plan's inputs have; itself if that is another's."""
    ranks = [[len(one.sizes(name) or ()) for name in graph.inputs] for one in (graph, stored)]
    if graph.inputs != stored.inputs or ranks[0] != ranks[1]:
        return graph
    return specialise(graph, stated_sizes(graph, stored))


def _ranges(
    stored: Plan | None, report: SplitReport | None
) -> tuple[Mapping[str, Ranges] | None, str]:
    """Ranges measured before, and where."""
    if stored is not None:
        return stored.ranges, "calibration of the pad store"
    if report is not None:
        return report.ranges, f"calibrated by the audit on {report.data}"
    return None, "no calibration needed: everything is computed in float32"


def _samples(calibration: Inputs | None, inputs: Inputs | None) -> tuple[Samples, str]:
    if calibration is not None:
        return (
            calibration.arrays,
            f"calibrated on {_samples_text(len(calibration.names))} of --calibration",
        )
    if inputs is None:
        raise InputError("--calibration: name typical inputs: a file, a folder or a quoted pattern")
    used = min(SELF_CALIBRATION, len(inputs.names))
    which = "" if used == len(inputs.names) else f" (the first {used})"
    return inputs.first(used), f"calibrated on the inputs themselves{which}"


def _samples_text(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"
