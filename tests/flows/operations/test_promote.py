"""Which challenger becomes champion: planted ones that are worse, equal, better, damaged, or know other classes."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import flows.operations.promote
from attnlstm.checkpoint import from_files, to_files
from attnlstm.config import ModelConfig
from attnlstm.evaluation.metrics import probabilities_of
from attnlstm.network import AttentionLSTM
from flows.operations.promote import PromotionRules, compare_checkpoints, decide_promotion, read_for
from flows.operations.train import Listener, TrainingRequest, train_checkpoint
from storage.labelled.source import LabelledSource
from storage.labelled.split import TEST, TRAIN, hash_keys, splits_of_hashes
from storage.registry.aliases import AliasMovedError
from storage.registry.cards import Card, Judgement, Sample
from storage.registry.checkpoints import Registry, StoredCheckpoint

Publish = Callable[..., str]


@pytest.fixture
def registry(registry_copy: Path) -> Registry:
    return Registry.open(str(registry_copy))


@pytest.fixture
def labelled(dataset: Path) -> LabelledSource:
    return LabelledSource(str(dataset))


@pytest.fixture
def publish_variant(registry: Registry, labelled: LabelledSource) -> Publish:
    """Publishes the champion as changed by `change`, with a card as training would have written it."""

    def publish(change: Callable[[AttentionLSTM], Any] = lambda network: None, into: Registry = registry) -> str:
        champion = registry.load("champion")
        network = from_files(champion.files, where="a test")
        with torch.no_grad():
            change(network)
        rows = labelled.read()
        values, offsets, _ = rows.side(TEST)
        (probabilities,) = probabilities_of([network], network.config.classes, values[: offsets[5]], offsets[:6])
        sample = Sample(
            contents=tuple(f"{content:016x}" for content in rows.contents[rows.splits == TEST][:5].tolist()),
            probabilities=tuple(map(tuple, probabilities.tolist())),
        )
        return into.publish(to_files(network), replace(champion.card, sample=sample), "# A test's\n").version

    return publish


def name_one_class(network: AttentionLSTM) -> None:
    network.mlp[2].weight.zero_()
    network.mlp[2].bias.copy_(torch.tensor([0.0, 5.0, 0.0]))


def nudge(network: AttentionLSTM) -> None:
    network.mlp[2].bias.add_(1e-4 * torch.arange(3))


def judgement(registry: Registry, version: str) -> Judgement:
    found = registry.card(version).judgement
    assert found is not None
    return found


def test_challenger_as_good_as_the_champion_is_promoted_and_its_card_says_why(
    registry: Registry, labelled: LabelledSource, publish_variant: Publish, trained: Any
) -> None:
    version = publish_variant(nudge)

    promotion = decide_promotion(labelled, registry, version)

    assert promotion.promoted
    alias = registry.alias()
    assert alias is not None
    assert (alias.version, alias.why) == (version, promotion.why)
    assert [each.version for each in alias.before] == [trained.version]
    record = judgement(registry, version)
    assert record == promotion.judgement
    assert (record.outcome, record.against, record.objections) == ("promoted", trained.version, ())
    assert record.difference["value"] == record.challenger.accuracy - record.champion.accuracy
    assert record.champion.auroc is not None
    assert promotion.why.startswith(f"test accuracy {record.challenger.accuracy:.4f}; champion {trained.version} has ")
    assert "90% interval of the gain" in promotion.why


def test_rows_whose_token_ids_only_one_checkpoint_knows_are_wrong_by_the_other(tmp_path: Path) -> None:
    registry = Registry.open(str(tmp_path / "registry"))
    source = tmp_path / "wide.parquet"
    pq.write_table(pa.table({"tokens": [[300, number] for number in range(200)], "label": ["x", "y"] * 100}), source)
    narrow, wide = (
        registry.publish(
            to_files(AttentionLSTM(ModelConfig(num_embeddings=size, classes=("x", "y")))), Card(), "# A test's"
        )
        for size in (257, 302)
    )
    rows = read_for(LabelledSource(str(source)), narrow, wide)

    compared = compare_checkpoints(narrow, wide, rows, "accuracy")

    assert (len(rows), compared.champion.accuracy) == (200, 0.0)
    assert 0 < compared.challenger.accuracy < 1


def test_worse_challenger_is_rejected_and_the_rows_that_flip_are_named_by_place(
    registry: Registry, labelled: LabelledSource, publish_variant: Publish, trained: Any, dataset: Path
) -> None:
    version = publish_variant(name_one_class)

    promotion = decide_promotion(labelled, registry, version)

    assert promotion.outcome == "rejected"
    assert promotion.why.startswith("its test accuracy is worse than the champion's; it names these classes worse than")
    assert registry.load("champion").version == trained.version
    record = judgement(registry, version)
    assert set(record.lost_classes) == {"digits", "letters"}
    assert record.flips["num_lost"] > 10
    assert record.flips["p_value"] < 0.01
    example = record.examples["lost"][0]
    file, _, row = example["row"].rpartition(" row ")
    table = pq.read_table(file, partitioning=None)
    assert Path(file).is_relative_to(dataset)
    assert table["label"][int(row)].as_py() == example["label"] == example["champion"]
    assert example["challenger"] == "high"
    assert len(record.examples["lost"]) == 10


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_every_metric_rejects_a_worse_challenger_and_a_wide_margin_lets_it_pass(
    metric: Any, registry: Registry, labelled: LabelledSource, publish_variant: Publish
) -> None:
    def blur(network: AttentionLSTM) -> None:
        torch.manual_seed(13)
        network.embedding.weight.add_(0.6 * torch.randn_like(network.embedding.weight))

    version = publish_variant(blur)
    promotion = decide_promotion(labelled, registry, version, PromotionRules(metric=metric, margin=0))
    assert promotion.outcome == "rejected"
    assert flows.operations.promote.NAMES[metric] in promotion.why
    assert promotion.judgement.lost_classes == ()
    rules = PromotionRules(metric=metric, margin=0.001 - promotion.judgement.difference["low"])
    assert decide_promotion(labelled, registry, version, rules).promoted


def test_class_that_is_lost_is_an_objection_that_no_margin_covers(
    registry: Registry, labelled: LabelledSource, publish_variant: Publish
) -> None:
    def forget(network: AttentionLSTM) -> None:
        network.mlp[2].bias[0] -= 50

    promotion = decide_promotion(labelled, registry, publish_variant(forget), PromotionRules(margin=1.0))

    assert promotion.outcome == "rejected"
    assert promotion.judgement.objections == ("it names these classes worse than the champion: digits",)


def test_challenger_that_learned_from_shuffled_labels_is_rejected(
    registry: Registry, dataset_copy: Path, trained: Any
) -> None:
    random = np.random.default_rng(41)
    for path in dataset_copy.rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        to_train_on = splits_of_hashes(hash_keys(name.encode() for name in table["group"].to_pylist())) == TRAIN
        labels = np.array(table["label"].to_pylist())
        labels[to_train_on] = random.permutation(labels[to_train_on])
        place = table.column_names.index("label")
        pq.write_table(table.set_column(place, "label", pa.array(labels.tolist())), path)
    labelled = LabelledSource(str(dataset_copy))
    for into in (registry, Registry.open(f"{registry.root}-empty")):  # also as the first of its registry
        request = TrainingRequest(labelled=labelled, preset="reference", overrides={"epochs": 4})
        version = train_checkpoint(request, into, Listener()).version

        promotion = decide_promotion(labelled, into, version)

        assert promotion.outcome == "rejected"
    assert registry.load("champion").version == trained.version
    assert into.alias() is None


def test_first_checkpoint_must_be_shown_to_beat_the_commonest_class(
    labelled: LabelledSource, publish_variant: Publish, tmp_path: Path
) -> None:
    empty = Registry.open(str(tmp_path / "empty"))
    poor = publish_variant(name_one_class, into=empty)

    promotion = decide_promotion(labelled, empty, poor)

    assert promotion.outcome == "rejected"
    assert promotion.why.startswith(
        "its test accuracy is not shown to beat naming the commonest class; the first checkpoint"
    )
    assert empty.alias() is None
    good = publish_variant(into=empty)
    promotion = decide_promotion(labelled, empty, good)
    assert promotion.promoted
    assert promotion.why.startswith("the first checkpoint, test accuracy ")
    assert promotion.judgement.against is None


def test_champion_and_a_twin_of_it_change_nothing(
    registry: Registry, labelled: LabelledSource, publish_variant: Publish, trained: Any
) -> None:
    before = registry.alias()
    assert decide_promotion(labelled, registry, trained.version).outcome == "unchanged"
    twin = publish_variant()
    promotion = decide_promotion(labelled, registry, twin)
    assert (promotion.outcome, promotion.promoted) == ("unchanged", False)
    assert promotion.why.startswith("it has the champion's own weights, since ")
    assert registry.alias() == before


def test_rollback_gives_the_scores_of_before_and_what_was_rolled_back_is_not_promoted_again(
    registry: Registry, labelled: LabelledSource, publish_variant: Publish, trained: Any
) -> None:
    rows = labelled.read()

    def scores() -> bytes:
        network = from_files(registry.load("champion").files, where="the champion")
        values, offsets, _ = rows.side(TEST)
        return probabilities_of([network], rows.classes, values, offsets)[0].tobytes()

    before = scores()
    version = publish_variant(nudge)
    assert decide_promotion(labelled, registry, version).promoted
    assert scores() != before
    registry.roll_back("a bad day")
    assert scores() == before

    shutil.rmtree(f"{registry.root}/checkpoints/{version}")
    promotion = decide_promotion(labelled, registry, publish_variant(nudge))

    assert promotion.judgement.objections == ("its weights were champion before and were rolled back",)
    assert registry.load("champion").version == trained.version


def test_scores_that_classify_does_not_give_are_an_objection(
    registry: Registry, labelled: LabelledSource, publish_variant: Publish
) -> None:
    version = publish_variant(nudge)
    sample = registry.card(version).sample
    assert sample is not None
    other = tuple((p[1], p[0], p[2]) for p in sample.probabilities)
    registry.annotate(version, sample=replace(sample, probabilities=other))

    promotion = decide_promotion(labelled, registry, version)

    (objection,) = promotion.judgement.objections
    assert re.match(r"classify gives scores that are (0\.\d+|1) from those seen in training", objection)
    registry.annotate(version, sample=replace(sample, contents=("0" * 16,) * 5))
    promotion = decide_promotion(labelled, registry, version)
    assert promotion.judgement.objections == ("none of the rows whose scores its card keeps is among the test rows",)


@pytest.fixture
def with_classes(registry: Registry) -> Callable[..., StoredCheckpoint]:
    """Publishes an untrained network over these classes."""

    def publish(*classes: str, seed: int = 3) -> StoredCheckpoint:
        torch.manual_seed(seed)
        return registry.publish(to_files(AttentionLSTM(ModelConfig(classes=classes))), Card(), "")

    return publish


def test_class_that_vanished_is_an_objection_unless_it_may_go(
    registry: Registry, labelled: LabelledSource, with_classes: Callable[..., StoredCheckpoint], trained: Any
) -> None:
    two = with_classes("digits", "letters").version

    refused = decide_promotion(labelled, registry, two)
    dropped = decide_promotion(labelled, registry, two, PromotionRules(vanished_classes="drop"))

    assert "it does not know these classes of the champion's: high" in refused.judgement.objections
    assert "it does not know these classes of the champion's: high" not in dropped.judgement.objections
    assert dropped.judgement.classes == {"appeared": (), "vanished": ("high",)}


def test_champion_is_wrong_on_rows_of_a_class_that_appeared(
    registry: Registry,
    with_classes: Callable[..., StoredCheckpoint],
    labelled: LabelledSource,
    publish_variant: Publish,
) -> None:
    version = publish_variant()
    registry.promote(with_classes("digits", "letters").version, "a test")

    promotion = decide_promotion(labelled, registry, version)

    assert promotion.promoted
    assert promotion.judgement.classes == {"appeared": ("high",), "vanished": ()}
    assert promotion.judgement.champion.per_class["high"].recall == 0
    assert promotion.judgement.champion.num_rows == promotion.judgement.challenger.num_rows


def test_prediction_of_a_class_without_rows_is_wrong_and_not_taken_for_the_second_best(
    registry: Registry, with_classes: Callable[..., StoredCheckpoint], labelled: LabelledSource
) -> None:
    network = AttentionLSTM(ModelConfig(classes=("digits", "ghost", "high", "letters")))
    with torch.no_grad():
        network.mlp[2].bias[1] += 50
    ghost = registry.publish(to_files(network), Card(), "")
    registry.promote(ghost.version, "a test")

    promotion = decide_promotion(labelled, registry, with_classes("digits", "high", "letters").version)

    assert promotion.judgement.champion.accuracy == 0


def test_champion_that_changed_meanwhile_is_noticed_and_nothing_moves(
    registry: Registry,
    labelled: LabelledSource,
    publish_variant: Publish,
    with_classes: Callable[..., StoredCheckpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version, other = publish_variant(nudge), with_classes("digits", "high", "letters").version

    def slow(*arguments: Any) -> str | None:
        registry.promote(other, "quicker")
        return None

    monkeypatch.setattr(flows.operations.promote, "replay_through_classify", slow)
    with pytest.raises(AliasMovedError, match=f"is {other} now, and {version} was compared with"):
        decide_promotion(labelled, registry, version)
    assert registry.load("champion").version == other
    monkeypatch.undo()
    assert decide_promotion(labelled, registry, version).judgement.against == other


def test_negative_margin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^margin must be at least 0, not -0\.01$"):
        replace(PromotionRules(), margin=-0.01)
