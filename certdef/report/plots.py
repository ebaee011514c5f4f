"""`certdef.plot`: what a user holds in Python as a figure, drawn as the pages draw it."""

from __future__ import annotations

from typing import Any

from certdef.report import held_figures
from certify.records.picture import Picture


def plot(value: Any) -> Picture:
    """Draw what a call has returned. A notebook shows the figure; ``savefig`` writes it.

    Args:
        value: One of:

            - `certify.Records` or a curve, or several by name: certified accuracy against the radius;
            - a `surrogates.Bill`: what is spent of each query budget;
            - agreement by number of queries, by strategy: `{"kcenter": {100: fidelity, 300: fidelity}}`;
            - what `certdef.attacks.threat_ladder.evaluate` returns, or several by name;
            - the result of a stage: certify, attack, ladder, budgets, robustness, a threat;
            - a job's summary or one of its stages: of its certificates, else of the last stage that has a picture.

    Raises:
        ConfigError: Anything else.

    Examples:
        >>> import certdef, surrogates
        >>> bill = surrogates.Bill(None, {"attack": surrogates.Charge(500, 120, 0, 0, 0)})
        >>> certdef.plot(bill).axes[0].get_xlabel()
        "share of the purpose's query budget"
    """
    if type(value).__module__.startswith(("certdef.stages", "certdef.tracking")):
        from certdef.report.result_figures import picture_of  # a job is loaded already: its result is here

        return picture_of(value)
    return held_figures.draw(value)
