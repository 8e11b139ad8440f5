"""`cloister plan` with goals: the planner chooses the plan and says what else it saw."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cloister.cli import options
from cloister.cli.console import out, stages, table
from cloister.cli.hidden_end import HiddenEnd
from cloister.errors import InputError, printable
from cloister.graph.graph import Graph
from cloister.graph.hidden import HiddenSplit
from cloister.plan.policies import needs_ranges
from cloister.plan.split_report import SplitReport
from cloister.planner.chosen_parts import plan_parts
from cloister.planner.find_plan import find_plan
from cloister.planner.frontier import COLUMNS, PlanFrontier
from cloister.planner.goals import Goals, InputHiding, Objective
from cloister.planner.plan_search import CostedPlan
from cloister.planner.planner_page import write_planner_page

GOALS = "Goals, for which the planner chooses the policy"
SHOWN = 12
"""Plans that the terminal shows at most; --page and --json have all."""
BAR = 40
COLOURS = {
    "blinded+verified": "green", "blinded": "bright_green", "verified": "blue", "open": "red",
    "enclave": "magenta", "module": "bright_black",
}  # fmt: skip
LAST = "last="

HideInput = Annotated[
    InputHiding | None,
    typer.Option(
        "--hide-input",
        help="No worker reads what follows from an input (proven), or reads only what --audit "
        "accepts (empirical).",
        rich_help_panel=GOALS,
    ),
]
HideWeights = Annotated[
    str | None,
    typer.Option(
        "--hide-weights",
        metavar="last=N",
        help="Hide the last N layers in a compiled module.",
        rich_help_panel=GOALS,
    ),
]
MaxTrusted = Annotated[
    float | None,
    typer.Option(
        "--max-trusted-ms", help="Trusted time for an input, at most.", rich_help_panel=GOALS
    ),
]
Aim = Annotated[
    Objective | None,
    typer.Option(
        "--objective",
        help="Make the time until an answer small, or the trusted time. Default: throughput.",
        rich_help_panel=GOALS,
    ),
]
PlannedBatch = Annotated[
    int | None,
    typer.Option("--batch", min=1, help="Inputs per message. Default: 1.", rich_help_panel=GOALS),
]
PlannedWorkers = Annotated[
    list[str] | None,
    typer.Option(
        "--worker",
        metavar="HOST:PORT",
        help="Measure with this worker. Repeatable. Default: a local process.",
        rich_help_panel=GOALS,
    ),
]
PlannerPage = Annotated[
    Path | None,
    typer.Option(
        "--page", metavar="FILE.html|.svg", help="Draw the plans here.", rich_help_panel=GOALS
    ),
]


@dataclass(frozen=True)
class GoalOptions:
    """What the plan has to keep, and how the planner finds it."""

    hide_input: HideInput = None
    hide_weights: HideWeights = None
    max_trusted_ms: MaxTrusted = None
    objective: Aim = None
    batch: PlannedBatch = None
    worker: PlannedWorkers = None
    page: PlannerPage = None

    @property
    def given(self) -> bool:
        """Whether the planner is to choose."""
        wanted = (self.hide_input, self.hide_weights, self.max_trusted_ms, self.objective)
        return any(option is not None for option in wanted)

    def refuse_any(self) -> None:
        """Refuse options of a planner that has no goal.

        Raises   InputError naming the first
        """
        options.refuse_given(
            "goes with a goal; give --hide-input, --hide-weights, --max-trusted-ms or --objective",
            {"--batch": self.batch, "--worker": self.worker or None, "--page": self.page},
        )

    @property
    def last(self) -> int | None:
        """How many of the last layers are to be hidden.

        Raises   InputError
        """
        if self.hide_weights is None:
            return None
        number = self.hide_weights.removeprefix(LAST)
        if number == self.hide_weights or not number.isdecimal() or int(number) < 1:
            raise InputError(f"--hide-weights {self.hide_weights}: give last=N, such as last=2")
        return int(number)

    def hidden_end(self, end: HiddenEnd) -> HiddenEnd:
        """The hidden end that --hide-weights names.

        Raises   InputError where --last or --from name one too
        """
        options.refuse_given("is said by --hide-weights; leave it out", {
            "--last": end.last, "--from": end.first,
        })  # fmt: skip
        return replace(end, last=self.last)

    def search(
        self,
        model: Graph,
        given: options.ModelInputs,
        hidden: HiddenSplit | None,
        audit: SplitReport | None,
    ) -> PlanFrontier:
        """Measure and search; the page is written here.

        Raises   InputError, PlanError, UnsupportedError
        """
        for option, value in (("--policy", given.policy), ("--until", given.until)):
            if value is not None:
                raise InputError(
                    f"{option}: is what the planner chooses; leave it or the goals out"
                )
        if self.page is not None and self.page.suffix not in (".html", ".svg"):
            raise InputError(f"--page {self.page}: name an .html or .svg file")
        goals = Goals(
            self.hide_input,
            None if given.integrity is None else given.integrity.value,
            self.max_trusted_ms,
            self.objective or Objective.THROUGHPUT,
        )
        with stages() as update:
            found = find_plan(
                model,
                goals,
                hidden=hidden,
                audit=audit,
                batch=self.batch or 1,
                workers=self.worker or None,
                progress=update,
            )
        if self.page is not None:
            write_planner_page(found, self.page)
        return found

    def decided(self, given: options.ModelInputs, chosen: CostedPlan) -> options.ModelInputs:
        """The options that make the chosen plan; those about integers go where it has none."""
        if not needs_ranges(chosen.policy):
            given = replace(given, calibration=None, weight_bits=None, activation_bits=None)
        return replace(
            given,
            policy=chosen.policy,
            until=None if chosen.split is None else ",".join(chosen.split.until),
            integrity=None,
            audit=None if chosen.split is None else given.audit,
        )


def show_search(found: PlanFrontier) -> None:
    """The plans on the frontier as a table, and the chosen one as a drawing."""
    console = out()
    # The best plan of each policy first: many splits of one policy would hide the others.
    heads = {one.policy: one for one in reversed(found.best)}.values()
    first = dict.fromkeys((found.chosen, *heads, *found.best))
    shown = sorted(list(first)[:SHOWN], key=found.plans.index)
    console.print(table(COLUMNS, found.rows(shown), title=f"plans of {found.model}, for one input"))
    if (rest := len(found.best) - len(shown)) > 0:
        console.print(f"{rest} more on the frontier: --page and --json have all")
    console.print()
    console.print(printable(f"chosen: {found.chosen.name}"), soft_wrap=True)
    parts = plan_parts(found.chosen)
    top = max((part.trusted_ms for part in parts), default=0.0)
    for part in parts:
        colour = COLOURS[part.protection.name]
        width = max(1, round(BAR * part.trusted_ms / top)) if top else 1
        line = Text()
        line.append("\N{FULL BLOCK}" * width + " ", style=colour)
        line.append(
            printable(
                f"{part.protection.name}: {part.span} ({len(part.nodes)} nodes), trusted "
                f"{part.trusted_ms:.2f} ms, worker {part.worker_ms:.2f} ms"
            )
        )
        console.print(line, soft_wrap=True)
    console.print(f"Python, for the request: {found.chosen.cost.request_ms:.2f} ms")
    console.print()
    for note in found.notes():
        console.print(note, soft_wrap=True)
