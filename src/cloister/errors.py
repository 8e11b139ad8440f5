"""Every error Cloister raises, and every warning it gives, on purpose.

    CloisterError
    ├── InputError                the user's input cannot be used: file, shape, type, value
    │   ├── ModelError            the model file is damaged, or not a model
    │   │   └── UnsupportedError  valid, but outside what Cloister runs; says what to do
    │   ├── ShapeError            an array has another shape or type than the model or message says
    │   ├── RangeError            a value cannot be represented: NaN, infinity, an unprovable bound
    │   │   ├── CellsError        cells of a table cannot be used; `lines` has one in each line
    │   │   └── ClipError         inputs lay outside the calibrated range (on_clip="raise")
    │   └── FunctionError         a function key may not be asked for: unit vector, packed operand
    ├── PlanError                 the plan contradicts itself, the model or the session
    ├── ProtocolError             the other side broke the wire protocol
    │   ├── WorkerError           the other side is a worker; the text begins with its name
    │   │   ├── WorkerUnavailable it cannot be reached, or died
    │   │   └── WorkerTimeout     it did not answer within the stated time
    │   ├── EngineError           the other side is a hidden module's engine: it died, hung, failed
    │   └── ChannelClosedError    an attested conversation has ended: closed, expired or broken
    ├── VerificationError         an answer was wrong: a check failed
    │   ├── AttestationError      evidence does not prove what was asked of it
    │   │   └── TpmError          a TPM cannot be reached, or refuses a command
    │   └── MeterError            a ticket's meter is damaged, another ticket's, or of a later time
    │       ├── RollbackError     an old state of the meter or of its counter was put back
    │       ├── ForkError         another copy of the meter was used
    │       └── CounterError      a monotonic counter cannot be read or advanced, or is another one
    ├── PadError                  blinding is impossible
    │   ├── PadReusedError        a pad would have been used twice
    │   ├── PadsExhausted         the store has no unused pad left
    │   ├── PadStoreError         the store is damaged, full, locked or belongs to another plan
    │   └── MakerError            a maker of pads broke the protocol, or none is left
    ├── EncryptionError           a ciphertext, key or data set is damaged, replayed or another's
    │   ├── UnknownDatasetError   the authority or server has no data set of this name
    │   ├── BundleError           a bundle is changed, stale, or of another vendor, key or plan
    │   └── TicketError           a ticket or receipt is changed, not valid now, or another one
    ├── BudgetError               a sample's leakage budget, a module's queries or a ticket's quota
    │                             would be exceeded
    ├── ReleaseError              a key broker refuses to release a key or to advance a counter
    └── ServiceUnavailable        a service cannot be reached, or is busy
        ├── AuthorityUnavailable  the key authority
        ├── BrokerUnavailable     the vendor's key broker
        └── CiphertextServerUnavailable

    CloisterWarning
    ├── PrecisionWarning          a layer of a plan is far from float32 on its calibration samples
    ├── TracingWarning            an exported PyTorch module decides as it did for its example
    └── ClipWarning               inputs lay outside the calibrated range (on_clip="warn")

Messages are one line, name the node, file or field and the remedy, and never contain a secret.
"""

MAX_LINE_CHARS = 300
MAX_TEXT_CHARS = 4000
"""Of an error: one that quotes a file of an attacker's fills no log."""


def printable(text: str, *, most: int | None = None) -> str:
    r"""Text from a file or another party, for a terminal: what does not show is written as \x1b.

    At most `most` characters of the result are kept. An escape sequence in a node's name could
    otherwise overwrite a claim, and a line break begin one; marks that turn the direction of
    writing, or take no room, could hide a part of it.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text[:most]


def one_line(error: Exception) -> str:
    """The first meaningful line of an error, whose text may be another library's or empty."""
    lines = (line.strip() for line in str(error).splitlines())
    return printable(next(filter(None, lines), type(error).__name__), most=MAX_LINE_CHARS)


class CloisterError(Exception):
    """Root of every deliberate error; its text is one printable line, whatever it quotes."""

    def __str__(self) -> str:
        return printable(super().__str__(), most=MAX_TEXT_CHARS)


class InputError(CloisterError):
    """The user's input cannot be used."""


class ModelError(InputError):
    """The model file is damaged or is not a model."""


class UnsupportedError(ModelError):
    """The model is valid but lies outside what Cloister runs."""


class ShapeError(InputError):
    """An array has another shape or dtype than stated."""


class RangeError(InputError):
    """A value cannot be represented."""


class CellsError(RangeError):
    """Cells of a table cannot be used.

    lines   the message again: what is wrong, a line for each cell, and what to do
    """

    def __init__(self, message: str, *, lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(map(printable, lines))


class ClipError(RangeError):
    """Inputs lay outside the calibrated range; their outputs were not released."""


class FunctionError(InputError):
    """A function for which no key is ever issued."""


class PlanError(CloisterError):
    """The plan contradicts itself, the model or the session."""


class ProtocolError(CloisterError):
    """The other side broke the wire protocol."""


class WorkerError(ProtocolError):
    """A worker broke the protocol; the text begins with its name."""


class WorkerUnavailable(WorkerError):  # noqa: N818  (a state, not a mistake)
    """The worker cannot be reached, or died."""


class WorkerTimeout(WorkerError):  # noqa: N818  (a state, not a mistake)
    """The worker did not answer within the stated time."""


class EngineError(ProtocolError):
    """The engine of a hidden module died, hung, or refused its input; nothing was returned."""


class ChannelClosedError(ProtocolError):
    """An attested conversation has ended: closed, expired or broken; begin a new one."""


class VerificationError(CloisterError):
    """A worker's answer failed its check."""


class AttestationError(VerificationError):
    """Evidence does not prove what was asked of it: nothing is sent to who showed it."""


class TpmError(AttestationError):
    """A TPM cannot be reached, or refuses a command.

    code   the TPM's, without the number of the operand; None where it gave none
    """

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class MeterError(VerificationError):
    """The meter of a ticket is damaged, another ticket's, or was used at a later time."""


class RollbackError(MeterError):
    """An old state of a ticket's meter, or of its counter, was put back."""


class ForkError(MeterError):
    """Another copy of a ticket's meter was used."""


class CounterError(MeterError):
    """A monotonic counter cannot be read or advanced, or is another than the ticket's."""


class PadError(CloisterError):
    """Blinding is impossible."""


class PadReusedError(PadError):
    """A pad would have been used twice."""


class PadsExhausted(PadError):  # noqa: N818  (a state, not a mistake)
    """The pad store holds no unused pad."""


class PadStoreError(PadError):
    """The pad store is damaged, full, locked or made for another plan."""


class MakerError(PadError):
    """A maker of pads broke the protocol, or none is left."""


class EncryptionError(CloisterError):
    """A ciphertext, key or encrypted data set cannot be used."""


class UnknownDatasetError(EncryptionError):
    """The authority or ciphertext server has no data set of this name."""


class BundleError(EncryptionError):
    """A bundle is changed, stale, or of another vendor, content key or plan."""


class TicketError(EncryptionError):
    """A ticket or receipt is changed, not valid now, or of another vendor or bundle."""


class BudgetError(CloisterError):
    """A sample's leakage budget, a module's queries or a ticket's quota would be exceeded."""


class ReleaseError(CloisterError):
    """A vendor's key broker refuses to release a key, or to advance a counter."""


class ServiceUnavailable(CloisterError):  # noqa: N818  (a state, not a mistake)
    """A service cannot be reached, or is busy."""


class AuthorityUnavailable(ServiceUnavailable):
    """The key authority cannot be reached, or is busy."""


class BrokerUnavailable(ServiceUnavailable):
    """The vendor's key broker cannot be reached, or is busy."""


class CiphertextServerUnavailable(ServiceUnavailable):
    """The ciphertext server cannot be reached, or is busy."""


class CloisterWarning(UserWarning):
    """Root of every deliberate warning; its text is one printable line, as that of an error."""

    def __str__(self) -> str:
        return printable(super().__str__())


class PrecisionWarning(CloisterWarning):
    """A layer's fixed-point error on the calibration samples exceeds its bound."""


class TracingWarning(CloisterWarning):
    """A PyTorch module decides on values or sizes; its export decides as for the example."""


class ClipWarning(CloisterWarning):
    """Inputs lay outside the calibrated range; their outputs may be wrong."""
