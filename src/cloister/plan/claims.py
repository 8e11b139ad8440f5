"""Claims: what each role learns and can do, how sure that is, and under which assumption.

The claims of a plan follow from its protections and from every message that is sent (`SENT`);
those of a training run, in the same type, from what it sends (`cloister.training.training_claims`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

from cloister.base.notebook import html_table
from cloister.errors import PlanError
from cloister.plan.planned_split import PlannedSplit, SplitEvidence
from cloister.plan.protection import (
    BLINDED,
    BLINDED_VERIFIED,
    ENCLAVE,
    MODULE,
    OPEN,
    VERIFIED,
    Protection,
    assumes_honest_worker,
)
from cloister.ring.freivalds import SOUNDNESS_BITS


class Role(StrEnum):
    """Who can receive something of a model's use or training."""

    WORKER = "worker"
    MAKER = "maker of pads"
    HOST = "host"
    VENDOR = "vendor"
    SERVER = "training server"
    RUNTIME = "trusted runtime"
    CIPHERTEXT_HOST = "ciphertext host"
    AUTHORITY = "authority"
    CLIENT = "another client"
    HOLDER = "holder of the model"
    FOLDER = "reader of --checkpoint"
    ANSWERS_READER = "reader of the answers"
    NETWORK = "network"


class Verb(StrEnum):
    """The kind of a statement."""

    LEARNS = "learns"
    CAN = "can"


class Extent(StrEnum):
    """How much: bounded, where a stated bound holds; everything, where none does."""

    NOTHING = "nothing"
    BOUNDED = "bounded"
    EVERYTHING = "everything"


EXTENTS = tuple(Extent)
"""From none to all."""


class Strength(StrEnum):
    """How sure a statement is.

    proved      it follows from what is sent
    assumed     it follows from what is sent and from the assumption
    empirical   attacks show it, and others may show more
    """

    PROVED = "proved"
    ASSUMED = "assumed"
    EMPIRICAL = "empirical"


@dataclass(frozen=True)
class Statement:
    """What one role learns, cannot learn (of extent nothing) or can do.

    Raises   PlanError when strength and assumption do not fit together
    """

    role: Role
    verb: Verb
    about: str
    extent: Extent
    text: str
    strength: Strength
    assumes: str

    def __post_init__(self) -> None:
        if (self.strength is Strength.ASSUMED) != bool(self.assumes):
            raise PlanError(f"claim about the {self.role}: strength 'assumed' names its assumption")

    def __str__(self) -> str:
        why = f"assuming: {self.assumes}" if self.assumes else self.strength
        return f"{self.verb:<8}{self.about:<28} {self.extent:<12}{self.text} ({why})"


def state(
    role: Role,
    verb: Verb,
    about: str,
    extent: Extent,
    text: str,
    assumes: str = "",
    *,
    shown: Strength = Strength.PROVED,
) -> Statement:
    """A statement; `shown` is its strength where it assumes nothing."""
    return Statement(
        role, verb, about, extent, text, Strength.ASSUMED if assumes else shown, assumes
    )


@dataclass(frozen=True)
class Claims:
    """All statements about a plan or a training run; `str()` is for people.

    soundness_bits   a wrong answer of a checked layer passes with probability 2^-soundness_bits;
                     None where nothing is checked
    """

    subject: str
    statements: tuple[Statement, ...]
    soundness_bits: float | None = None

    def of(self, role: Role, verb: Verb) -> tuple[Statement, ...]:
        """The statements of one kind about one role."""
        return tuple(s for s in self.statements if s.role == role and s.verb == verb)

    def worst(self, role: Role, verb: Verb = Verb.LEARNS) -> Extent:
        """How much one role learns, or can do, at most.

        Raises   PlanError where the claims say nothing about it
        """
        found = [statement.extent for statement in self.of(role, verb)]
        if not found:
            raise PlanError(f"claims of {self.subject}: say nothing about what the {role} {verb}")
        return max(found, key=EXTENTS.index)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> "Claims":
        """Inverse of `to_dict`."""
        statements = (
            Statement(
                Role(s["role"]), Verb(s["verb"]), s["about"], Extent(s["extent"]), s["text"],
                Strength(s["strength"]), s["assumes"],
            )
            for s in fields["statements"]
        )  # fmt: skip
        return Claims(fields["subject"], tuple(statements), fields["soundness_bits"])

    def _repr_html_(self) -> str:
        rows = ((s.role, s.verb, s.about, s.extent, s.text, s.assumes) for s in self.statements)
        header = ("who", "", "about", "how much", "in words", "assuming")
        return html_table(self.subject, rows, header=header)

    def __str__(self) -> str:
        lines = [f"{self.subject}: who learns what, and can do what"]
        for role, statements in groupby(self.statements, key=lambda statement: statement.role):
            lines += [f"  {role}", *(f"    {statement}" for statement in statements)]
        return "\n".join(lines)


USE, MEMORY, FILES = "the model and its use", "the trusted side's memory", "the pad store"
MODULES, QUERIES, CODE = "weights in modules", "answers of modules", "code of modules"
WEIGHTS, INPUTS, MESSAGES = "weights", "inputs and results", "messages"
THE_INPUT, FROM_SPLIT = "the input", "the input, from the split"

SENT: Mapping[str, str] = {
    "Hello": "the protocol's version",
    "LoadLinear": "shapes, strides, padding and integer weights of the layers it computes, in "
    "their order",
    "LoadSegment": "the operators, weights, names and notes of the open part of the model",
    "Apply": "the number of inputs in each message and the time between messages",
    "MakePads": "the seed of every pad that it makes, the number of inputs they are for, and when "
    "they are asked for",
}
"""What every kind of message to a worker or maker shows besides the tensors of `Apply`, which are
the statements' subject; by the message's class in `cloister.wire.messages`."""
SCALED = (
    "the coarse scale of raw input channels in the calibration samples, by which the weights of "
    "{count} of these layers are divided in powers of two"
)
"""What `LoadLinear` shows besides, where layers have factors (`input_factors`)."""

_Said = tuple[Extent, str, str]
"""How much, in words, and under which assumption."""
_PADS = "AES-256-CTR is a pseudorandom generator"
_COEFFICIENTS = "check coefficients stay secret"
_HONEST = "the worker follows the protocol"
_MACHINE = "the machine of the trusted runtime is trustworthy"
_NOTHING = "nothing about this input or the values computed from it"
_CHEAT: _Said = (
    Extent.BOUNDED,
    f"change an answer unnoticed with probability at most 2^-{SOUNDNESS_BITS:.1f} per layer",
    _COEFFICIENTS,
)
_BELIEVED: _Said = (
    Extent.EVERYTHING,
    "change every answer unnoticed; results are right only if it is honest",
    "",
)
_INSIDE: _Said = (Extent.NOTHING, "nothing", _MACHINE)
_WORKER: Mapping[Protection, tuple[_Said, _Said]] = {
    BLINDED_VERIFIED: (
        (Extent.NOTHING, f"{_NOTHING}: each message is uniform", f"{_PADS}; {_COEFFICIENTS}"),
        _CHEAT,
    ),
    BLINDED: (
        (
            Extent.NOTHING,
            f"{_NOTHING}, from the messages it is sent; it may learn from what the caller does "
            "with results it has changed",
            f"{_PADS}; {_HONEST}",
        ),
        _BELIEVED,
    ),
    VERIFIED: ((Extent.EVERYTHING, "these layers' inputs, exactly, in fixed point", ""), _CHEAT),
    OPEN: ((Extent.EVERYTHING, "the inputs and every value, exactly", ""), _BELIEVED),
    ENCLAVE: (_INSIDE, _INSIDE),
    MODULE: (_INSIDE, _INSIDE),
}
"""A worker's knowledge and abilities, where the whole plan has this protection."""
_AFTER_SPLIT: tuple[_Said, _Said] = (
    (Extent.EVERYTHING, "the values that cross the split, and every value after it, exactly", ""),
    (Extent.EVERYTHING, "decide what these nodes compute: its answer is believed", ""),
)
"""The same of open nodes after a split."""


def claims_of(
    policy: str,
    protections: Mapping[str, Protection],
    *,
    scaled: int = 0,
    queries: int | None = None,
    split: PlannedSplit | None = None,
    pinned: bool = True,
) -> Claims:
    """The claims that follow from a plan's protections.

    scaled    how many nodes have input factors
    queries   how many samples each module may answer; None: any number
    split     where the plan stops to hide values
    pinned    whether the caller relies on what the plan tells of an audit
    """
    used = list(protections.values())
    outside = [protection for protection in used if protection.on_worker]
    checked = any(protection.checked for protection in outside)
    trusts = assumes_honest_worker(policy)
    statements = tuple(_worker(used, outside, scaled, split, trusts=trusts))
    if split is not None:
        statements += tuple(_of_split(split, trusts=trusts, pinned=pinned))
    return Claims(
        f"policy {policy}",
        (
            *statements,
            *_host(used, outside, queries),
            *_vendor(hidden=MODULE in used),
            *_network(statements),
        ),
        SOUNDNESS_BITS if checked else None,
    )


def _worker(
    used: Sequence[Protection],
    outside: Sequence[Protection],
    scaled: int,
    split: PlannedSplit | None,
    *,
    trusts: bool,
) -> Iterator[Statement]:
    if not outside:
        for verb in Verb:
            yield state(Role.WORKER, verb, INPUTS, Extent.NOTHING, "nothing; there is no worker")
        return
    hidden = all(protection.hidden for protection in outside)
    checked = all(protection.checked for protection in outside)
    for protection in _WORKER:
        if protection in used:
            count = used.count(protection)
            about = f"{protection.name} ({count} node{'' if count == 1 else 's'})"
            learns, can = _WORKER[protection]
            if split is not None and protection == OPEN:
                learns, can = _AFTER_SPLIT
            if not hidden and protection.hidden:
                learns = (Extent.BOUNDED, *_beside_clear(protection, learns, trusts=trusts))
            if not checked and not protection.on_worker:
                text = "change their inputs, where these follow from unchecked answers"
                can = (Extent.BOUNDED, text, _MACHINE)
            yield state(Role.WORKER, Verb.LEARNS, about, *learns)
            yield state(Role.WORKER, Verb.CAN, about, *can)
    yield state(Role.WORKER, Verb.LEARNS, USE, Extent.BOUNDED, _visible(outside, scaled))


def _of_split(split: PlannedSplit, *, trusts: bool, pinned: bool) -> Iterator[Statement]:
    """What a worker learns of an input at most, and how far it was measured what that tells."""
    rests_on = _HONEST if trusts else ""
    text = f"no more than the values that cross the split after {_name(split)}, {_COMPUTED}"
    assumes = f"{_PADS}; {_HONEST if trusts else _COEFFICIENTS}"
    yield state(Role.WORKER, Verb.LEARNS, THE_INPUT, Extent.BOUNDED, text, assumes)
    found = split.evidence if pinned else None
    extent = Extent.EVERYTHING if found is None else Extent.BOUNDED
    shown = Strength.PROVED if found is None else Strength.EMPIRICAL
    text = _measured(found) if found else f"all that these values tell of it{_unmeasured(split)}"
    yield state(Role.WORKER, Verb.LEARNS, FROM_SPLIT, extent, text, rests_on, shown=shown)
    if trusts:
        text = (
            "find more: an error that it adds to an unchecked answer shows in what crosses; the "
            "policy assumes that the worker follows the protocol"
        )
        yield state(Role.WORKER, Verb.CAN, THE_INPUT, Extent.EVERYTHING, text)


def _measured(found: SplitEvidence) -> str:
    """What an audit found, which is what its report says; other attacks may find more."""
    *attacks, last = found.attacks
    return (
        f"{', '.join(attacks)} and {last} pick the true image of {found.candidates} in at most "
        f"{found.identification:.1%} (chance {1 / found.candidates:.1%}) and find, on "
        f"average, at most {max(found.explained, 0):.1%} of its variance and "
        f"{max(found.ssim, 0):.2f} SSIM above a blind guess, on {found.images} images of "
        f"{found.data} (SHA-256 {found.data_sha256[:16]}), says report "
        f"{found.report.hex()[:16]}; other attacks may find more"
    )


def _unmeasured(split: PlannedSplit) -> str:
    if split.evidence is None:
        return "; no audit has measured it"
    report = split.evidence.report.hex()[:16]
    return f"; the plan names report {report}, and no digest pins the plan"


def _name(split: PlannedSplit) -> str:
    return ",".join(split.until)


_COMPUTED = "and what is computed from them"
_RESULTS = "their results wherever a node it computes in the clear reads them"
_ANSWERS = "nothing of their weights; of their answers, what a later node in the clear is sent"
_BESIDE_CLEAR: Mapping[Protection, str] = {
    BLINDED_VERIFIED: "nothing from these nodes' messages; what later nodes send in the clear, it "
    "sees",
    BLINDED: "from later nodes in the clear, what they are sent, and how its own changes to these "
    "unchecked answers alter that",
    ENCLAVE: _RESULTS,
    MODULE: _ANSWERS,
}
"""A worker's knowledge of hidden nodes in a plan that has nodes in the clear too."""


def _beside_clear(protection: Protection, said: _Said, *, trusts: bool) -> tuple[str, str]:
    """What a worker learns of hidden nodes in a plan that has others in the clear, in words.

    trusts   whether the policy assumes a worker that follows the protocol
    """
    _, _, assumes = said
    if not trusts:
        return _BESIDE_CLEAR[protection], assumes
    if protection == BLINDED:
        return _BESIDE_CLEAR[BLINDED_VERIFIED], assumes
    return _BESIDE_CLEAR[protection], f"{assumes}; {_HONEST}"


def _visible(outside: Sequence[Protection], scaled: int) -> str:
    kinds = ["Hello"]
    if any(protection.on_integers for protection in outside):
        kinds.append("LoadLinear")
    if OPEN in outside:
        kinds.append("LoadSegment")
    seen = [SENT[kind] for kind in (*kinds, "Apply")]
    if scaled:
        seen.insert(-1, SCALED.format(count=scaled))
    return f"{', '.join(seen[:-1])}, and {seen[-1]}"


def _network(worker: Sequence[Statement]) -> Iterator[Statement]:
    """Messages to workers are not encrypted: a listener learns and can do as the worker."""
    for verb, text in (
        (Verb.LEARNS, "what a worker learns whose messages it carries: they are not encrypted"),
        (Verb.CAN, "what a worker can whose messages it carries, and cut the connection"),
    ):
        extent = max((s.extent for s in worker if s.verb is verb), key=EXTENTS.index)
        assumed = any(s.assumes for s in worker if s.verb is verb)
        assumes = "what is assumed of the worker" if assumed else ""
        if any(s.about != INPUTS for s in worker):
            yield state(Role.NETWORK, verb, MESSAGES, extent, text, assumes)


def _host(
    used: Sequence[Protection], outside: Sequence[Protection], queries: int | None
) -> Iterator[Statement]:
    """The operator of the trusted side's machine."""
    trusted = "it is trusted: every other line rests on that"
    modules = used.count(MODULE)
    memory = (
        f"every input, value, result, pad and key{' and the weights in modules' * bool(modules)}: "
        "no attested hardware hides the memory of the trusted side (hardware_rooted: false)"
    )
    yield state(Role.HOST, Verb.LEARNS, MEMORY, Extent.EVERYTHING, memory, trusted)
    yield state(Role.HOST, Verb.CAN, MEMORY, Extent.EVERYTHING, "change every result", trusted)
    if modules < len(used):
        text = "all, but those in modules" if modules else "all"
        yield state(Role.HOST, Verb.LEARNS, WEIGHTS, Extent.EVERYTHING, text)
    if modules:
        yield from _host_of_modules(modules, queries)
    if any(protection.hidden for protection in outside):
        yield state(Role.HOST, Verb.LEARNS, FILES, Extent.BOUNDED, *_SEALED)
        yield state(Role.HOST, Verb.CAN, FILES, Extent.BOUNDED, *_ROLLED_BACK)


def _host_of_modules(count: int, queries: int | None) -> Iterator[Statement]:
    """The customer's machine, of which the vendor of a hidden part has other expectations."""
    about, answers = f"{MODULES} ({count})", f"{QUERIES} ({count})"
    yield state(Role.HOST, Verb.LEARNS, about, Extent.BOUNDED, *_IN_MODULES)
    if queries is None:
        yield state(
            Role.HOST, Verb.LEARNS, answers, Extent.EVERYTHING, _ANY_NUMBER,
            shown=Strength.EMPIRICAL,
        )  # fmt: skip
        yield state(Role.HOST, Verb.CAN, answers, Extent.EVERYTHING, "ask without limit")
        return
    yield state(
        Role.HOST, Verb.LEARNS, answers, Extent.BOUNDED, _SO_MANY.format(queries=queries),
        shown=Strength.EMPIRICAL,
    )  # fmt: skip
    text = f"ask at most {queries} times in all, about inputs of its choice"
    yield state(Role.HOST, Verb.CAN, answers, Extent.BOUNDED, text, _COUNTED)


_IN_MODULES = (
    "the size of the compiled module, its time and memory, and what enters and leaves it",
    "it does not read the memory of the engine's process, or the keys and files of the module, "
    "which no attested hardware hides (hardware_rooted: false)",
)
_PAIRS = (
    "pairs of inputs of its choice and answers tell of the hidden weights: a linear layer follows "
    "from about as many probability vectors as it has inputs, and a surrogate from fewer answers"
)
_ANY_NUMBER = f"what any number of {_PAIRS}"
_SO_MANY = f"what {{queries}} {_PAIRS}"
_COUNTED = (
    "the module runs in unchanged code of Cloister with one query counter, and no old copy of its "
    "file is put back"
)
_SANDBOXED = (
    "answer anything: its compiled code runs in the trusted side, without files, network or the "
    "memory of other processes",
    "the operating system enforces the limits of the engine's process",
)
_SEALED = (
    "how many pads of which plan were made and used, their sizes, and when; their contents are "
    "encrypted",
    "AES-256 encrypts; the key file is stored elsewhere",
)
_ROLLED_BACK = (
    "delete pads; copies, changed and old files, or the answers that they make wrong, are refused, "
    "but an old key file has pads used twice",
    "the key file is on storage whose snapshots its owner controls",
)


def _vendor(*, hidden: bool) -> Iterator[Statement]:
    yield state(
        Role.VENDOR,
        Verb.LEARNS,
        INPUTS,
        Extent.NOTHING,
        "nothing; no message goes to it",
        "it operates neither the trusted side nor a worker",
    )
    text = "decide every result by the weights, and how much a result tells of its input"
    yield state(Role.VENDOR, Verb.CAN, INPUTS, Extent.EVERYTHING, text)
    if hidden:
        yield state(Role.VENDOR, Verb.CAN, CODE, Extent.BOUNDED, *_SANDBOXED)
