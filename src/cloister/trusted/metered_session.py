"""A session whose outputs are bought by a ticket: run, then spend, then release."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cloister.base.rng import Csprng
from cloister.errors import PlanError
from cloister.graph.batch import sample_count
from cloister.plan.samples import Samples, as_samples
from cloister.tickets.output_release import OPENING_BYTES, commitment, released
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
                 released. Nothing was spent either, unless the counter failed within the spend
        """
        plan = self._session.plan
        model = plan.template or plan.graph
        feeds = as_samples(model, inputs)
        self._meter.require(sample_count(model, feeds))
        result = self._session.run(feeds, progress=progress)
        try:
            return bought_result(result, self._meter, rng=self._rng)
        except BaseException as error:
            # An error keeps the frames that it passed through, and these hold outputs.
            del result
            error.__traceback__ = None
            raise error


def bought_result(result: Result, meter: TicketMeter, *, rng: Csprng) -> MeteredResult:
    """Spend a result's outputs, then give what the ticket releases of them.

    Raises   BudgetError, TicketError, MeterError, InputError; then nothing may be released
    """
    ticket, count = meter.ticket, result.report.inputs
    outputs = released(result.outputs, ticket.outputs, top=ticket.top, count=count)
    opening = rng.random_bytes(OPENING_BYTES)
    receipt = meter.spend(count, commitment(outputs, opening))
    return MeteredResult(outputs, result.report, result.transcript, receipt, opening)
