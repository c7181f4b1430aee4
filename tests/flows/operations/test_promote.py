"""Which challenger becomes champion: planted ones that are worse, equal, better, damaged, or know other classes."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from flows.operations.promote import Promotion, PromotionRules, compare_checkpoints, decide_promotion, read_for
from flows.operations.train import Listener, TrainingRequest, train_checkpoint
from storage.labelled.source import LabelledSource
from storage.labelled.split import TEST, TRAIN, hash_keys, splits_of_hashes
from storage.registry.aliases import AliasMovedError
from storage.registry.cards import Card, Judgement, Sample
from storage.registry.checkpoints import Registry


@dataclass
class Contest:
    """A registry with a trained champion, and the labelled rows on which challengers meet it."""

    registry: Registry
    labelled: LabelledSource

    def publish(
        self, change: Callable[[AttentionLSTM], Any] = lambda network: None, into: Registry | None = None
    ) -> str:
        """The champion as changed by `change`, with a card as training would have written it. Gives the version."""
        champion = self.registry.load("champion")
        network = from_files(champion.files, where="a test")
        with torch.no_grad():
            change(network)
        rows = self.labelled.read()
        values, offsets, _ = rows.side(TEST)
        (probabilities,) = probabilities_of([network], network.config.classes, values[: offsets[5]], offsets[:6])
        sample = Sample(
            contents=tuple(f"{content:016x}" for content in rows.contents[rows.splits == TEST][:5].tolist()),
            probabilities=tuple(map(tuple, probabilities.tolist())),
        )
        card = replace(champion.card, sample=sample)
        return (into or self.registry).publish(to_files(network), card, "# A test's\n").version

    def publish_untrained(self, *classes: str, change: Callable[[AttentionLSTM], Any] = lambda network: None) -> str:
        torch.manual_seed(3)
        network = AttentionLSTM(ModelConfig(classes=classes))
        with torch.no_grad():
            change(network)
        return self.registry.publish(to_files(network), Card(), "").version

    def decide(self, version: str, rules: PromotionRules | None = None, into: Registry | None = None) -> Promotion:
        return decide_promotion(self.labelled, into or self.registry, version, rules or PromotionRules())

    @property
    def champion(self) -> str:
        return self.registry.load("champion").version


@pytest.fixture
def contest(registry_copy: Path, dataset: Path) -> Contest:
    return Contest(Registry.open(str(registry_copy)), LabelledSource(str(dataset)))


def name_one_class(network: AttentionLSTM) -> None:
    network.mlp[2].weight.zero_()
    network.mlp[2].bias.copy_(torch.tensor([0.0, 5.0, 0.0]))


def nudge(network: AttentionLSTM) -> None:
    network.mlp[2].bias.add_(1e-4 * torch.arange(3))


def judgement(contest: Contest, version: str) -> Judgement:
    found = contest.registry.card(version).judgement
    assert found is not None
    return found


def test_challenger_as_good_as_the_champion_is_promoted_and_its_card_says_why(contest: Contest, trained: Any) -> None:
    version = contest.publish(nudge)

    promotion = contest.decide(version)

    assert promotion.promoted
    alias = contest.registry.alias()
    assert alias is not None
    assert (alias.version, alias.why) == (version, promotion.why)
    assert [each.version for each in alias.before] == [trained.version]
    record = judgement(contest, version)
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
    contest: Contest, trained: Any, dataset: Path
) -> None:
    version = contest.publish(name_one_class)

    promotion = contest.decide(version)

    assert promotion.outcome == "rejected"
    assert promotion.why.startswith("its test accuracy is worse than the champion's; it names these classes worse than")
    assert contest.champion == trained.version
    record = judgement(contest, version)
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
def test_every_metric_rejects_a_worse_challenger_and_a_wide_margin_lets_it_pass(contest: Contest, metric: Any) -> None:
    def blur(network: AttentionLSTM) -> None:
        torch.manual_seed(13)
        network.embedding.weight.add_(0.6 * torch.randn_like(network.embedding.weight))

    version = contest.publish(blur)
    promotion = contest.decide(version, PromotionRules(metric=metric, margin=0))
    assert promotion.outcome == "rejected"
    assert flows.operations.promote.NAMES[metric] in promotion.why
    assert promotion.judgement.lost_classes == ()
    rules = PromotionRules(metric=metric, margin=0.001 - promotion.judgement.difference["low"])
    assert contest.decide(version, rules).promoted


def test_class_that_is_lost_is_an_objection_that_no_margin_covers(contest: Contest) -> None:
    def forget(network: AttentionLSTM) -> None:
        network.mlp[2].bias[0] -= 50

    promotion = contest.decide(contest.publish(forget), PromotionRules(margin=1.0))

    assert promotion.outcome == "rejected"
    assert promotion.judgement.objections == ("it names these classes worse than the champion: digits",)


def test_challenger_that_learned_from_shuffled_labels_is_rejected(
    contest: Contest, dataset_copy: Path, trained: Any
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
    for into in (
        contest.registry,
        Registry.open(f"{contest.registry.root}-empty"),
    ):  # also as the first of its registry
        request = TrainingRequest(labelled=labelled, preset="reference", overrides={"epochs": 4})
        version = train_checkpoint(request, into, Listener()).version

        promotion = decide_promotion(labelled, into, version)

        assert promotion.outcome == "rejected"
    assert contest.champion == trained.version
    assert into.alias() is None


def test_first_checkpoint_must_be_shown_to_beat_the_commonest_class(contest: Contest, tmp_path: Path) -> None:
    empty = Registry.open(str(tmp_path / "empty"))
    poor = contest.publish(name_one_class, into=empty)

    promotion = contest.decide(poor, into=empty)

    assert promotion.outcome == "rejected"
    assert promotion.why.startswith(
        "its test accuracy is not shown to beat naming the commonest class; the first checkpoint"
    )
    assert empty.alias() is None
    good = contest.publish(into=empty)
    promotion = contest.decide(good, into=empty)
    assert promotion.promoted
    assert promotion.why.startswith("the first checkpoint, test accuracy ")
    assert promotion.judgement.against is None


def test_champion_and_a_twin_of_it_change_nothing(contest: Contest, trained: Any) -> None:
    before = contest.registry.alias()
    assert contest.decide(trained.version).outcome == "unchanged"
    twin = contest.publish()
    promotion = contest.decide(twin)
    assert (promotion.outcome, promotion.promoted) == ("unchanged", False)
    assert promotion.why.startswith("it has the champion's own weights, since ")
    assert contest.registry.alias() == before


def test_rollback_gives_the_scores_of_before_and_what_was_rolled_back_is_not_promoted_again(
    contest: Contest, trained: Any
) -> None:
    rows = contest.labelled.read()

    def scores() -> bytes:
        network = from_files(contest.registry.load("champion").files, where="the champion")
        values, offsets, _ = rows.side(TEST)
        return probabilities_of([network], rows.classes, values, offsets)[0].tobytes()

    before = scores()
    version = contest.publish(nudge)
    assert contest.decide(version).promoted
    assert scores() != before
    contest.registry.roll_back("a bad day")
    assert scores() == before

    shutil.rmtree(f"{contest.registry.root}/checkpoints/{version}")
    promotion = contest.decide(contest.publish(nudge))

    assert promotion.judgement.objections == ("its weights were champion before and were rolled back",)
    assert contest.champion == trained.version


def test_scores_that_classify_does_not_give_are_an_objection(contest: Contest) -> None:
    version = contest.publish(nudge)
    sample = contest.registry.card(version).sample
    assert sample is not None
    other = tuple((p[1], p[0], p[2]) for p in sample.probabilities)
    contest.registry.annotate(version, sample=replace(sample, probabilities=other))

    promotion = contest.decide(version)

    (objection,) = promotion.judgement.objections
    assert re.match(r"classify gives scores that are (0\.\d+|1) from those seen in training", objection)
    contest.registry.annotate(version, sample=replace(sample, contents=("0" * 16,) * 5))
    promotion = contest.decide(version)
    assert promotion.judgement.objections == ("none of the rows whose scores its card keeps is among the test rows",)


def test_class_that_vanished_is_an_objection_unless_it_may_go(contest: Contest, trained: Any) -> None:
    two = contest.publish_untrained("digits", "letters")

    refused = contest.decide(two)
    dropped = contest.decide(two, PromotionRules(vanished_classes="drop"))

    assert "it does not know these classes of the champion's: high" in refused.judgement.objections
    assert "it does not know these classes of the champion's: high" not in dropped.judgement.objections
    assert dropped.judgement.classes == {"appeared": (), "vanished": ("high",)}


def test_champion_is_wrong_on_rows_of_a_class_that_appeared(contest: Contest) -> None:
    version = contest.publish()
    contest.registry.promote(contest.publish_untrained("digits", "letters"), "a test")

    promotion = contest.decide(version)

    assert promotion.promoted
    assert promotion.judgement.classes == {"appeared": ("high",), "vanished": ()}
    assert promotion.judgement.champion.per_class["high"].recall == 0
    assert promotion.judgement.champion.num_rows == promotion.judgement.challenger.num_rows


def test_prediction_of_a_class_without_rows_is_wrong_and_not_taken_for_the_second_best(contest: Contest) -> None:
    def name_a_ghost(network: AttentionLSTM) -> None:
        network.mlp[2].bias[1] += 50

    ghost = contest.publish_untrained("digits", "ghost", "high", "letters", change=name_a_ghost)
    contest.registry.promote(ghost, "a test")

    promotion = contest.decide(contest.publish_untrained("digits", "high", "letters"))

    assert promotion.judgement.champion.accuracy == 0


def test_champion_that_changed_meanwhile_is_noticed_and_nothing_moves(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, other = contest.publish(nudge), contest.publish_untrained("digits", "high", "letters")

    def slow(*arguments: Any) -> str | None:
        contest.registry.promote(other, "quicker")
        return None

    monkeypatch.setattr(flows.operations.promote, "replay_through_classify", slow)
    with pytest.raises(AliasMovedError, match=f"is {other} now, and {version} was compared with"):
        contest.decide(version)
    assert contest.champion == other
    monkeypatch.undo()
    assert contest.decide(version).judgement.against == other


def test_negative_margin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^margin must be at least 0, not -0\.01$"):
        replace(PromotionRules(), margin=-0.01)
