"""A session whose outputs are bought by a ticket: run, then spend, then release."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cloister.base.rng import Csprng
from cloister.errors import InputError, PlanError
from cloister.graph.batch import sample_count
from cloister.plan.samples import Samples, as_samples
from cloister.tickets.output_release import OPENING_BYTES, commitment, released, require_form
from cloister.tickets.ticket_meter import SignedReceipt, TicketMeter
from cloister.trusted.report import Result
from cloister.trusted.session import Session


@dataclass(frozen=True)
class MeteredResult(Result):
    """A result that holds what the ticket releases, and its receipt.

    opening   opens the receipt's commitment to the outputs; for the customer alone
    """

    outputs: Mapping[str, np.ndarray]
    receipt: SignedReceipt
    opening: bytes = field(repr=False)


class MeteredSession:
    """Inputs through a session, outputs through a meter; several threads take turns.

    The session's plan must hide the end of the model. Without a hidden end the machine's owner
    computes the outputs without a ticket.
    """

    def __init__(self, session: Session, meter: TicketMeter, *, rng: Csprng) -> None:
        if not session.plan.modules:
            raise PlanError("a ticket meters a plan with a hidden part, and this plan has none")
        self._session, self._meter, self._rng = session, meter, rng

    def run(
        self, inputs: Samples, *, progress: Callable[[int, int], None] | None = None
    ) -> MeteredResult:
        """What the ticket releases of the outputs for a batch of inputs, all of them or nothing.

        A batch beyond the quota is refused before anything of it is computed. An iterator's items
        are read and held together for this. See `Session.run`.

        Raises   BudgetError, TicketError, MeterError, and as `Session.run`; then nothing was
                 released. Nothing was spent either, unless the counter failed within the spend, or
                 the scores are such that nothing may be released of them
        """
        plan = self._session.plan
        model = plan.template or plan.graph
        feeds = as_samples(model, inputs)
        self._meter.require(sample_count(model, feeds))
        result: Result | None = None
        try:
            result = self._session.run(feeds, progress=progress)
            return bought_result(result, self._meter, rng=self._rng)
        except BaseException as error:
            result = None
            _forget_values(error)
            raise


def bought_result(result: Result, meter: TicketMeter, *, rng: Csprng) -> MeteredResult:
    """Spend a result's outputs, then give what the ticket releases of them.

    Scores of which nothing may be released are spent: that they are such tells of them.

    Raises   BudgetError, TicketError, MeterError, InputError; then nothing may be released
    """
    ticket, count = meter.ticket, result.report.inputs
    require_form(result.outputs, ticket.outputs, top=ticket.top, count=count)
    outputs: Mapping[str, np.ndarray] = {}
    refused: str | None = None
    try:
        outputs = released(result.outputs, ticket.outputs, top=ticket.top, count=count)
    except InputError as error:
        refused = str(error)
    opening = rng.random_bytes(OPENING_BYTES)
    receipt = meter.spend(count, commitment(outputs, opening))
    if refused is not None:
        raise InputError(f"{refused}; its inputs are paid for, since a refusal tells of scores")
    return MeteredResult(outputs, result.report, result.transcript, receipt, opening)


def _forget_values(error: BaseException) -> None:
    """Clear the frames that an error and those before it passed through: they hold outputs."""
    seen: list[BaseException] = []
    coming: list[BaseException | None] = [error]
    while coming:
        one = coming.pop()
        if one is not None and one not in seen:
            seen.append(one)
            traceback.clear_frames(one.__traceback__)
            coming += [one.__context__, one.__cause__]
