"""The commands about a registry's checkpoints: list, show, promote, rollback, compare, prune.

Reads storage and prints. Knows nothing about Prefect, so that these commands are quick; only `compare --source` loads
the model.
"""

import json
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import Field
from rich.markup import escape
from rich.table import Table

from attnlstm.evaluation.comparison import Metric
from flows.cli.figures import compare_cards, print_comparison, print_figures
from flows.cli.printing import byte_size, counted, out, print_facts, print_json
from flows.cli.session import DONE
from storage.errors import RegistryError
from storage.registry.checkpoints import CHAMPION, Registry
from storage.registry.retention import Doomed, find_prunable
from storage.registry.retention import prune as remove_old

AsJson = Annotated[bool, Parameter(name="--json")]


def list_checkpoints(*, registry: str = "registry", as_json: AsJson = False) -> int:
    """List the checkpoints of a registry, oldest first. Reads their cards only.

    Args:
        registry: Folder or URI of the checkpoint registry.
        as_json: Print JSON, for scripts.
    """
    opened = Registry.open(registry)
    alias = opened.alias()
    rows = [_row(opened, version, alias is not None and alias.version == version) for version in opened.versions()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return DONE
    if not rows:
        out.print(f"No checkpoints in {opened.root}. Train one with `attnlstm retrain SOURCE --registry {registry}`.")
        return DONE
    table = Table("version", "", "accuracy", "macro-F1", "trained on", box=None)
    for row in rows:
        measures = [f"{row[name]:.4f}" if row[name] is not None else "" for name in ("accuracy", "macro_f1")]
        state = "champion" if row["champion"] else row["damage"] or row["judged"] or ""
        table.add_row(row["version"], escape(state), *measures, row["source"])
    out.print(table)
    if alias:
        out.print(f"champion since {alias.since}: {escape(alias.why)}")
    return DONE


def show(checkpoint: str = CHAMPION, *, registry: str = "registry", as_json: AsJson = False) -> int:
    """Show a checkpoint's figures, what it was trained on, and why it was promoted or not.

    Args:
        checkpoint: "champion" or a version.
        registry: Folder or URI of the checkpoint registry.
        as_json: Print the whole card as JSON.
    """
    opened = Registry.open(registry)
    card = opened.card(_version(opened, checkpoint))
    if as_json:
        print_json(card)
        return DONE
    alias = opened.alias()
    if alias and alias.version == card["version"]:
        print_facts({"champion": f"since {alias.since}: {alias.why}"})
    print_figures(card)
    return DONE


def promote(version: str, *, why: str = "promoted by hand", registry: str = "registry") -> int:
    """Make a checkpoint the champion, whatever the judgement on it was.

    Args:
        version: Version of the registry.
        why: The reason, for the history.
        registry: Folder or URI of the checkpoint registry.
    """
    Registry.open(registry).promote(version, why)
    out.print(f"{version} is champion.")
    return DONE


def rollback(*, why: str = "rolled back by hand", registry: str = "registry") -> int:
    """Make the champion before this one champion again. What is rolled back is not promoted again by itself.

    Args:
        why: The reason, for the history.
        registry: Folder or URI of the checkpoint registry.
    """
    alias = Registry.open(registry).roll_back(why)
    out.print(f"{alias.version} is champion again; {alias.undone[0].version} is not.")
    return DONE


def compare(
    a: str,
    b: str,
    *,
    source: str | None = None,
    metric: Metric = "accuracy",
    tokens_column: str = "tokens",
    label_column: str = "label",
    group_column: str = "group",
    registry: str = "registry",
    as_json: AsJson = False,
) -> int:
    """Compare two checkpoints: what their cards say, or, given a source, both on the same held-out rows.

    Args:
        a: "champion" or a version, the old one.
        b: "champion" or a version, the new one.
        source: Labelled Parquet, as for retrain. Both score its test rows.
        metric: What to compare them by: accuracy, macro_f1 or log_loss.
        tokens_column: Column with the tokens.
        label_column: Column with the class.
        group_column: Rows of one group stay on one side of the split.
        registry: Folder or URI of the checkpoint registry.
        as_json: Print JSON, for scripts.
    """
    opened = Registry.open(registry)
    if source is None:
        record = compare_cards(opened.card(_version(opened, a)), opened.card(_version(opened, b)))
    else:
        from flows.operations.promote import compare_checkpoints
        from storage.labelled.source import LabelledSource

        rows = LabelledSource(source, tokens_column, label_column, group_column).read()
        old, new = opened.load(a), opened.load(b)
        record = {"a": old.version, "b": new.version}
        record |= compare_checkpoints(old, new, rows, metric).record()
    if as_json:
        print_json(record)
    else:
        print_comparison(record)
    return DONE


def prune(
    *,
    registry: str = "registry",
    keep: Annotated[int, Field(ge=1)] = 5,
    history: Annotated[int, Field(ge=1)] = 3,
    dry_run: bool = False,
    as_json: AsJson = False,
) -> int:
    """Remove old checkpoints, and what killed runs left. The champion stays in any case.

    Args:
        registry: Folder or URI of the checkpoint registry.
        keep: The newest checkpoints stay, so many of them.
        history: The champions before this one stay, so many of them, for rollback.
        dry_run: Say what would be removed, and leave it.
        as_json: Print JSON, for scripts.
    """
    opened = Registry.open(registry)
    choose = find_prunable if dry_run else remove_old
    _show_removed(choose(opened, keep=keep, history=history), dry_run, as_json)
    return DONE


def _version(registry: Registry, checkpoint: str) -> str:
    """The version that a name stands for. Raises RegistryError as `Registry.load` does, without reading weights."""
    if checkpoint != CHAMPION:
        return checkpoint
    alias = registry.alias()
    return alias.version if alias else registry.load(CHAMPION).version  # which says how to get one


def _row(registry: Registry, version: str, is_champion: bool) -> dict[str, Any]:
    """What the list says of a version. A damaged card is no reason not to list the others."""
    card: dict[str, Any] = {}
    damage = None
    try:
        card = registry.card(version)
    except RegistryError as error:
        damage = str(error)
    test = card.get("test", {})
    return {
        "version": version,
        "champion": is_champion,
        "judged": card.get("judgement", {}).get("outcome"),
        "accuracy": test.get("accuracy"),
        "macro_f1": test.get("macro_f1"),
        "source": card.get("data", {}).get("source"),
        "damage": damage,
    }


def _show_removed(doomed: list[Doomed], dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"dry_run": dry_run, "removed": [asdict(each) for each in doomed]})
        return
    verb = "would remove" if dry_run else "removed"
    for each in doomed:
        out.print(f"{verb}  {escape(f'{each.path} ({each.reason})')}")
    size = byte_size(sum(each.num_bytes for each in doomed))
    out.print(f"{verb.capitalize()} {counted(len(doomed), 'item')} of {size}." if doomed else "Nothing to remove.")
