"""The convergence curves of a study as one picture.

Knows outcomes and what they came to; draws with matplotlib, which is imported only here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.study_summary import SetFigures

if TYPE_CHECKING:
    from attnlstm.study import Outcome
    from attnlstm.variants import Variant

_PANELS_A_ROW, _PANEL_INCHES = 2, (4.5, 3.2)

# Okabe and Ito's colours, which colour-blind readers can tell apart too; dashes where attention is missing or broken.
_STYLES: "dict[Variant, tuple[str, str]]" = {
    "last_state": ("#999999", "--"),
    "mean": ("#56B4E9", "--"),
    "additive": ("#0072B2", "-"),
    "multihead": ("#D55E00", "-"),
    "multihead_published": ("#CC79A7", ":"),
}

# Text stays text, in whatever sans-serif font the reader has; ids follow from the content, so that the same curves
# give the same file.
_SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "attnlstm", "font.family": "sans-serif"}


def draw_curves(
    figures: Sequence[SetFigures], outcomes: "dict[str, list[Outcome]]", names: "dict[Variant, str]", path: Path
) -> None:
    """Write an SVG: for each set the validation loss after each epoch, mean and range over seeds.

    outcomes: of each set, by name. names: of the variants, for the legend.
    """
    import matplotlib
    from matplotlib.figure import Figure

    num_rows = -(-len(figures) // _PANELS_A_ROW)
    num_columns = min(len(figures), _PANELS_A_ROW)
    with matplotlib.rc_context(_SVG):
        size = (_PANEL_INCHES[0] * num_columns, _PANEL_INCHES[1] * num_rows + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
        for panel, of_set in zip(panels, figures, strict=False):
            _draw_panel(panel, of_set, outcomes[of_set.name], names)
        for panel in panels[len(figures) :]:
            panel.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _draw_panel(panel: Any, of_set: SetFigures, outcomes: "list[Outcome]", names: "dict[Variant, str]") -> None:
    epochs = np.arange(1, of_set.num_epochs + 1)
    for variant, (colour, dashes) in _STYLES.items():
        losses = np.array([outcome.validation_loss for outcome in outcomes if outcome.variant == variant])
        panel.fill_between(epochs, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        panel.plot(epochs, losses.mean(axis=0), dashes, color=colour, label=names[variant])
    panel.axhline(of_set.loss, color="black", linewidth=0.8, alpha=0.5, label="the loss to reach")
    panel.set(title=of_set.name, xlabel="epoch", ylabel="validation loss (nats)")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.2)
