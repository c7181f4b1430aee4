"""The picture of the results: tokens a second of each contender, median and range, from the records alone."""

from pathlib import Path
from typing import Any

PANELS = {"end-to-end": "hidden 32", "hidden-16": "hidden 16, the published network"}
OURS_COLOUR, PEERS_COLOUR = "#2f6f4f", "#9aa5ad"


def draw(parts: dict[str, Any], target: Path) -> bool:
    """Write an SVG, and say whether there was something to draw. The same records give the same bytes."""
    shown = {part: parts[part] for part in PANELS if part in parts}
    if not shown:
        return False
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": "attnlstm", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    most = max(len(record["figures"]["contenders"]) for record in shown.values())
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            len(shown), figsize=(7.5, (0.8 + 0.3 * most) * len(shown)), sharex=True, squeeze=False, layout="constrained"
        )
        for axis, (part, record) in zip(axes[:, 0], shown.items(), strict=True):
            _panel(axis, record["figures"]["contenders"])
            axis.set_title(f"Parquet to Parquet, {PANELS[part]}", loc="left")
        cores = next(iter(shown.values()))["machine"]["cores"]
        axes[-1, 0].set_xlabel(f"million tokens a second on {cores} cores")
        figure.savefig(target, metadata={"Date": None})
        pyplot.close(figure)
    return True


def _panel(axis: Any, contenders: dict[str, Any]) -> None:
    speeds = {name: found["million_tokens_per_second"] for name, found in contenders.items()}
    names = sorted(speeds, key=lambda name: speeds[name]["median"])
    medians = [speeds[name]["median"] for name in names]
    below = [speeds[name]["median"] - speeds[name]["low"] for name in names]
    above = [speeds[name]["high"] - speeds[name]["median"] for name in names]
    colours = [OURS_COLOUR if name.startswith("attnlstm") else PEERS_COLOUR for name in names]
    axis.barh(names, medians, xerr=[below, above], color=colours, error_kw={"elinewidth": 1, "capsize": 2})
    for row, (median, high) in enumerate(zip(medians, above, strict=True)):
        axis.text(median + high, row, f"  {median:.2f}", va="center")
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
