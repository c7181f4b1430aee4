"""How a checkpoint's figures, and two checkpoints' side by side, read in a terminal.

Draws from cards and records of comparisons only.
"""

from typing import Any

from rich.markup import escape
from rich.table import Table

from flows.cli.printing import MOST_LISTED, counted, out, print_facts, print_rest

_MEASURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "log_loss": "log loss",
    "auroc": "AUROC",
    "ece": "calibration error",
    "ece_before_scaling": "before scaling",
}


def print_figures(card: dict[str, Any]) -> None:
    """A checkpoint: what it was trained on, how good it is on test rows, and what was decided about it."""
    test, data, training = card.get("test", {}), card.get("data", {}), card.get("training", {})
    facts = {"version": card["version"]}
    if data:
        rows = ", ".join(f"{name} {count:,}" for name, count in data["rows"].items())
        sources = ", ".join([data["source"], *data.get("also", [])])
        facts["trained on"] = f"{sources}: {rows} rows, split by {data['split_by']}"
    if training:
        facts["training"] = (
            f"{len(training['epochs'])} epochs in {training['seconds']:.0f} s, the best was {training['best_epoch']}"
        )
    if test:
        measures = (f"{text} {test[name]:.4f}" for name, text in _MEASURES.items() if test.get(name) is not None)
        facts["test"] = f"{', '.join(measures)}, on {counted(test.get('num_rows', 0), 'row')}"
    if judgement := card.get("judgement"):
        facts[judgement["outcome"]] = f"{judgement['at']}: {judgement['why']}"
    print_facts(facts)
    if per_class := test.get("per_class"):
        table = Table("class", "precision", "recall", "F1", "test rows", box=None)
        for name, figures in list(per_class.items())[:MOST_LISTED]:
            numbers = (f"{figures[each]:.4f}" for each in ("precision", "recall", "f1"))
            table.add_row(escape(name), *numbers, f"{figures['num_rows']:,}")
        out.print(table)
        print_rest(len(per_class), "classes")


def compare_cards(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What two cards say, side by side. same_rows: whether both were measured on the same number of the same source's
    rows, without which the figures can't be held against each other."""
    data = [{name: card.get("data", {}).get(name) for name in ("source", "also", "since", "rows")} for card in (a, b)]
    return {
        "a": a["version"],
        "b": b["version"],
        "same_rows": data[0] == data[1],
        "champion": a.get("test", {}),
        "challenger": b.get("test", {}),
        "settings": _differing(a, b),
    }


def print_comparison(record: dict[str, Any]) -> None:
    """What `compare_cards` says, or a comparison on the same rows."""
    a, b = record["champion"], record["challenger"]
    table = Table("", record["a"], record["b"], "change", box=None)
    for name, text in _MEASURES.items():
        if a.get(name) is not None and b.get(name) is not None:
            table.add_row(text, f"{a[name]:.4f}", f"{b[name]:.4f}", f"{b[name] - a[name]:+.4f}")
    for name in list(a.get("per_class", {}))[:MOST_LISTED]:
        if name in b.get("per_class", {}):
            before, after = a["per_class"][name]["f1"], b["per_class"][name]["f1"]
            table.add_row(escape(f"F1 of {name}"), f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    out.print(table)
    if "difference" in record:
        _print_tests(record)
        return
    for name, (before, after) in record["settings"].items():
        out.print(f"{name}: {escape(str(before))}, then {escape(str(after))}")
    if not record["same_rows"]:
        out.print("These figures are of other rows each; --source compares both on the same ones.")


def _print_tests(record: dict[str, Any]) -> None:
    found, flips = record["difference"], record["flips"]
    out.print(
        f"On {counted(record['num_rows'], 'row')}: {found['metric']} {found['value']:+.4f}, {found['confidence']:.0%} "
        f"interval {found['low']:+.4f} to {found['high']:+.4f}"
    )
    out.print(f"{flips['num_won']:,} rows won, {flips['num_lost']:,} lost, p {flips['p_value']:.2g}")
    for what in ("lost", "won"):
        for each in record["examples"].get(what, []):
            out.print(
                escape(f"{what}  {each['row']}: {each['label']}, named {each['champion']}, then {each['challenger']}")
            )


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings in which two trainings differ, by name."""
    before, after = (card.get("training", {}) for card in (a, b))
    before, after = (
        {"preset": each.get("preset"), "started_from": each.get("started_from"), **each.get("settings", {})}
        for each in (before, after)
    )
    return {
        name: (before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    }
