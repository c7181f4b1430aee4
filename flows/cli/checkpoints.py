"""The commands about a registry's checkpoints: list, show, add, export, promote, rollback, compare, prune.

Owns what they print, which is drawn from cards and from records of comparisons. Knows nothing about Prefect, so that
these commands are quick; only `add`, `export` and `compare --source` load the model.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import Field

from attnlstm.evaluation.comparison import Metric
from flows.cli import DONE
from flows.cli.printing import MOST_LISTED, AsJson, Printer, byte_size, printer
from flows.operations.exchange import ExportFormat
from flows.operations.measure import abstention_in_words, how_sure, left_out_in_words
from flows.operations.promote import PromotionRules
from flows.orchestration.facts import counted
from storage.errors import RegistryError
from storage.registry.cards import MEASURE_NAMES, Card, Figures
from storage.registry.checkpoints import CHAMPION, Registry
from storage.registry.retention import Removable, find_removable
from storage.registry.retention import prune as remove_old

if TYPE_CHECKING:
    from flows.operations.promote import Compared

RegistryPlace = Annotated[str, Parameter(help="Folder or URI of the checkpoint registry.")]
WholeCard = Annotated[AsJson, Parameter(help="Print the whole card as JSON.")]

_MEASURES = {key: name for key, name in MEASURE_NAMES.items() if key != "majority_accuracy"}


def list_checkpoints(*, registry: RegistryPlace = "registry", as_json: AsJson = False) -> int:
    """List the checkpoints of a registry, oldest first. Reads their cards only."""
    opened = Registry.open(registry)
    alias = opened.alias()
    rows = [_row(opened, version, alias is not None and alias.version == version) for version in opened.versions()]
    to = printer(as_json)
    show_list(to, rows)
    if not rows:
        to.say(f"No checkpoints in {opened.root}. Train one with `attnlstm retrain SOURCE --registry {registry}`.")
    if alias:
        to.say(f"champion since {alias.since}: {alias.why}")
    return DONE


def show(checkpoint: str = CHAMPION, *, registry: RegistryPlace = "registry", as_json: WholeCard = False) -> int:
    """Show a checkpoint's figures, what it was trained on, and why it was promoted or not.

    Args:
        checkpoint: "champion" or a version.
    """
    opened = Registry.open(registry)
    card = opened.card(_version(opened, checkpoint))
    alias = opened.alias()
    since = f"since {alias.since}: {alias.why}" if alias and alias.version == card.version else None
    show_card(printer(as_json), card, since)
    return DONE


def add(
    place: str,
    *,
    classes: list[str] | None = None,
    num_heads: Annotated[int, Field(ge=1)] = 1,
    source: str | None = None,
    metric: Metric = "accuracy",
    margin: Annotated[float, Field(ge=0)] = PromotionRules.margin,
    tokens_column: str = "tokens",
    label_column: str = "label",
    group_column: str = "group",
    registry: RegistryPlace = "registry",
) -> int:
    """Add a checkpoint from elsewhere. Nothing is unpickled.

    Given labelled data, it is measured on their test rows and judged like a retrained one: it becomes champion if it is
    shown to be no worse.

    Args:
        place: Weights under the published names as safetensors, or a folder with config.json and model.safetensors.
        classes: Names of the classes, in the order of the logits. By default those of config.json, or numbers.
        num_heads: Heads of multihead attention, which weights do not show.
        source: Labelled Parquet, as for retrain.
        metric: What decides between it and the champion: accuracy, macro_f1 or log_loss.
        margin: How much worse than the champion's the metric may be, at the lower end of its interval.
        tokens_column: Column with the tokens.
        label_column: Column with the class.
        group_column: Rows of one group stay on one side of the split.
    """
    from flows.operations.exchange import adopt_checkpoint
    from flows.operations.promote import decide_promotion
    from storage.labelled.source import LabelledSource

    opened = Registry.open(registry)
    labelled = LabelledSource(source, tokens_column, label_column, group_column) if source else None
    stored = adopt_checkpoint(place, opened, classes=classes, num_heads=num_heads, labelled=labelled)
    facts = card_facts(stored.card) | {"checkpoint": str(stored.location)}
    if labelled is None:
        facts["not judged"] = (
            f"no --source was given; `attnlstm checkpoints promote {stored.version}` makes it champion"
        )
    else:
        promotion = decide_promotion(labelled, opened, stored.version, PromotionRules(metric=metric, margin=margin))
        facts[{"promoted": "champion"}.get(promotion.outcome, promotion.outcome)] = promotion.why
    printer().facts(facts)
    return DONE


def export(
    checkpoint: str = CHAMPION,
    *,
    format: ExportFormat,
    out: str | None = None,
    registry: RegistryPlace = "registry",
) -> int:
    """Write a checkpoint for use elsewhere: as ONNX, checked against the engine, or as a folder for model hubs.

    Args:
        checkpoint: "champion", a version, or a checkpoint's folder.
        format: onnx for a file that ONNX Runtime loads, hub for a folder as the Hugging Face and Modelers hubs have it.
        out: The file or folder to write, as a path or URI; VERSION.onnx or VERSION by default.
    """
    from flows.operations.exchange import export_checkpoint

    printer().facts(export_checkpoint(Registry.open(registry).load(checkpoint), format, out))
    return DONE


def promote(version: str, *, why: str = "promoted by hand", registry: RegistryPlace = "registry") -> int:
    """Make a checkpoint the champion, whatever the judgement on it was.

    Args:
        version: Version of the registry.
        why: The reason, for the history.
    """
    Registry.open(registry).promote(version, why)
    printer().say(f"{version} is champion.")
    return DONE


def rollback(*, why: str = "rolled back by hand", registry: RegistryPlace = "registry") -> int:
    """Make the champion before this one champion again. What is rolled back is not promoted again by itself.

    Args:
        why: The reason, for the history.
    """
    alias = Registry.open(registry).roll_back(why)
    printer().say(f"{alias.version} is champion again; {alias.undone[0].version} is not.")
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
    registry: RegistryPlace = "registry",
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
    """
    opened = Registry.open(registry)
    if source is None:
        show_cards(printer(as_json), opened.card(_version(opened, a)), opened.card(_version(opened, b)))
        return DONE
    from flows.operations.promote import compare_checkpoints, read_for
    from storage.labelled.source import LabelledSource

    old, new = opened.load(a), opened.load(b)
    rows = read_for(LabelledSource(source, tokens_column, label_column, group_column), old, new)
    show_compared(printer(as_json), old.version, new.version, compare_checkpoints(old, new, rows, metric))
    return DONE


def prune(
    *,
    registry: RegistryPlace = "registry",
    keep: Annotated[int, Field(ge=1)] = 5,
    history: Annotated[int, Field(ge=1)] = 3,
    dry_run: bool = False,
    as_json: AsJson = False,
) -> int:
    """Remove old checkpoints, and what killed runs left. The champion stays in any case.

    Args:
        keep: The newest checkpoints stay, so many of them.
        history: The champions before this one stay, so many of them, for rollback.
        dry_run: Say what would be removed, and leave it.
    """
    opened = Registry.open(registry)
    choose = find_removable if dry_run else remove_old
    show_removed(printer(as_json), choose(opened, keep=keep, history=history), dry_run=dry_run)
    return DONE


def _version(registry: Registry, checkpoint: str) -> str:
    """The version that a name stands for. Raises RegistryError as `Registry.load` does, without reading weights."""
    if checkpoint != CHAMPION:
        return checkpoint
    alias = registry.alias()
    return alias.version if alias else registry.load(CHAMPION).version  # which says how to get one


def _row(registry: Registry, version: str, is_champion: bool) -> dict[str, Any]:
    """What the list says of a version. A damaged card is no reason not to list the others."""
    card, damage = Card(), None
    try:
        card = registry.card(version)
    except RegistryError as error:
        damage = str(error)
    return {
        "version": version,
        "champion": is_champion,
        "judged": card.judgement.outcome if card.judgement else None,
        "accuracy": card.test.accuracy if card.test else None,
        "macro_f1": card.test.macro_f1 if card.test else None,
        "source": card.data.source if card.data else card.added_from,
        "damage": damage,
    }


def show_list(to: Printer, rows: Sequence[dict[str, Any]]) -> None:
    """A row for each checkpoint of a registry; no table of none."""
    to.record(rows)
    shown = []
    for row in rows:
        measures = (f"{row[name]:.4f}" if row[name] is not None else "" for name in ("accuracy", "macro_f1"))
        state = "champion" if row["champion"] else row["damage"] or row["judged"] or ""
        shown.append((row["version"], state, *measures, row["source"] or ""))
    if shown:
        to.table(("version", "", "accuracy", "macro-F1", "trained on"), shown)


def show_card(to: Printer, card: Card, champion: str | None) -> None:
    """One checkpoint. champion: since when it is that and why, if it is."""
    to.record(card.record())
    facts = {"champion": champion} if champion else {}
    facts |= {"version": card.version} | card_facts(card)
    if judgement := card.judgement:
        facts[judgement.outcome] = f"{judgement.at}: {judgement.why}"
    to.facts(facts)
    if card.test and card.test.per_class:
        rows = [
            (name, f"{of.precision:.4f}", f"{of.recall:.4f}", f"{of.f1:.4f}", f"{of.num_rows:,}")
            for name, of in card.test.per_class.items()
        ]
        to.table(("class", "precision", "recall", "F1", "test rows"), rows, rest="classes")


def card_facts(card: Card) -> dict[str, str]:
    """What a checkpoint was trained on, how that went, and how good it is on test rows, as far as its card says."""
    facts = {"added from": card.added_from} if card.added_from else {}
    if data := card.data:
        rows = ", ".join(f"{name} {count:,}" for name, count in data.rows.items())
        facts["trained on"] = f"{', '.join([data.source, *data.also])}: {rows} rows, split by {data.split_by}"
        if words := left_out_in_words(data):
            facts["left out"] = f"rows {words}"
    if training := card.training:
        facts["training"] = (
            f"{len(training.epochs)} epochs in {training.seconds:.0f} s, the best was {training.best_epoch}; "
            f"stopped by {training.stopped_by}, from {training.started_from}"
        )
    if test := card.test:
        measures = [f"{text} {value:.4f}" for text, value in _measures(test).items()]
        measures.append(f"commonest class {test.majority_accuracy:.4f}")
        words = how_sure(test)
        facts["test"] = f"{', '.join(measures)}, on {counted(test.num_rows, 'row')}{f': {words}' if words else ''}"
    if card.abstention:
        facts["abstaining"] = abstention_in_words(card.abstention)
    return facts


def _measures(figures: Figures) -> dict[str, float]:
    """The figures of all classes that there are, by their names for people."""
    found = {text: getattr(figures, name) for name, text in _MEASURES.items()}
    return {text: value for text, value in found.items() if value is not None}


def show_cards(to: Printer, a: Card, b: Card) -> None:
    """What two cards say, side by side."""
    settings = _differing(a, b)
    # Without the same rows of the same sources, figures can't be held against each other.
    same_rows = _rows_of(a) == _rows_of(b)
    record = {"a": a.version, "b": b.version, "same_rows": same_rows}
    record |= {name: card.test.record() if card.test else {} for name, card in (("champion", a), ("challenger", b))}
    to.record(record | {"settings": settings})
    _show_figures(to, (a.version, b.version), a.test, b.test)
    for name, (before, after) in settings.items():
        to.say(f"{name}: {before}, then {after}")
    if not same_rows:
        to.say("These figures are of other rows each; --source compares both on the same ones.")


def show_compared(to: Printer, a: str, b: str, compared: "Compared") -> None:
    """Two versions on the same rows."""
    to.record({"a": a, "b": b} | compared.record())
    _show_figures(to, (a, b), compared.champion, compared.challenger)
    found, flips = compared.difference, compared.flips
    to.say(
        f"On {counted(compared.num_rows, 'row')}: {found.metric} {found.value:+.4f}, {found.confidence:.0%} "
        f"interval {found.low:+.4f} to {found.high:+.4f}"
    )
    to.say(f"{flips.num_won:,} rows won, {flips.num_lost:,} lost, p {flips.p_value:.2g}")
    for what, examples in compared.examples.items():
        for each in examples:
            to.say(f"{what}  {each['row']}: {each['label']}, named {each['champion']}, then {each['challenger']}")


def _show_figures(to: Printer, versions: tuple[str, str], before: Figures | None, after: Figures | None) -> None:
    rows = []
    if before and after:
        of_before, of_after = _measures(before), _measures(after)
        for name, of_class in list(before.per_class.items())[:MOST_LISTED]:
            of_before[f"F1 of {name}"] = of_class.f1
        of_after |= {f"F1 of {name}": of_class.f1 for name, of_class in after.per_class.items()}
        rows = [
            (text, f"{value:.4f}", f"{of_after[text]:.4f}", f"{of_after[text] - value:+.4f}")
            for text, value in of_before.items()
            if text in of_after
        ]
    to.table(("", *versions, "change"), rows)


def _rows_of(card: Card) -> tuple[Any, ...] | None:
    return (card.data.source, card.data.also, card.data.since, card.data.rows) if card.data else None


def _differing(a: Card, b: Card) -> dict[str, tuple[Any, Any]]:
    """Settings in which two trainings differ, by name."""
    before, after = (
        {"preset": training.preset, "started_from": training.started_from} | training.settings if training else {}
        for training in (a.training, b.training)
    )
    return {
        name: (before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    }


def show_removed(to: Printer, removable: Sequence[Removable], *, dry_run: bool) -> None:
    """What was removed from a registry, or would be."""
    to.record({"dry_run": dry_run, "removed": [asdict(each) for each in removable]})
    verb = "would remove" if dry_run else "removed"
    for each in removable:
        to.say(f"{verb}  {each.path} ({each.reason})")
    size = byte_size(sum(each.num_bytes for each in removable))
    to.say(f"{verb.capitalize()} {counted(len(removable), 'item')} of {size}." if removable else "Nothing to remove.")
