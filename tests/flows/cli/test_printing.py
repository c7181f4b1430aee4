"""What commands print of a value: in a terminal for people, with --json for scripts."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from attnlstm.evaluation.comparison import Difference, Flips
from flows.cli.checkpoints import show_card, show_cards, show_compared, show_list
from flows.cli.commands import show_partitions, show_run
from flows.cli.outputs import show_verified
from flows.cli.printing import Json, Printer, Terminal, byte_size, duration
from flows.operations.promote import Compared
from flows.operations.rescore import Rescored
from storage.output.manifests import FailureRecord, RunManifest
from storage.output.side_by_side import Problem
from storage.output.verification import VerificationReport
from storage.registry.cards import Card, ClassFigures, Data, Figures, Judgement, Training, card_to_json

Show = Callable[..., None]


def printed(show: Show, *values: Any, **options: Any) -> list[str]:
    """The lines that a terminal shows, without the blanks at their ends."""
    text = io.StringIO()
    show(Terminal(Console(file=text, width=160, soft_wrap=True, highlight=False)), *values, **options)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def recorded(capsys: pytest.CaptureFixture[str], show: Show, *values: Any) -> Any:
    """What --json prints."""
    show(Json(), *values)
    return json.loads(capsys.readouterr().out)


def test_terminal_shows_what_is_for_people_and_json_the_record_and_both_complain_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def show(to: Printer) -> None:
        to.record({"é": [1]})
        to.say("[done]")
        to.facts({"place": "a[b]", "long name": "x"})
        to.table(("one", "two"), [("[1]", "2")])
        to.lines([("wrong", "here [7]")], rest="problems")

    assert printed(show) == ["[done]", "place      a[b]", "long name  x", " one  two", " [1]  2", "wrong  here [7]"]
    assert recorded(capsys, show) == {"é": [1]}
    for to in (Terminal(), Json()):
        to.complain("[it] failed")
        assert capsys.readouterr() == ("", "[it] failed\n")


@pytest.mark.parametrize(("count", "num_more", "rest"), [(20, 0, None), (21, 0, 1), (25, 4000, "4,005")])
def test_long_lists_end_in_time_and_say_so(count: int, num_more: int, rest: str | None) -> None:
    def show(to: Printer) -> None:
        to.lines([("lost", str(number)) for number in range(count)], rest="rows", num_more=num_more, kept_in="the file")

    lines = printed(show)

    assert lines[19] == "lost  19"
    assert lines[20:] == ([f"and {rest} more rows; the file lists them"] if rest else [])


def test_tables_are_cut_only_where_json_has_the_rest_and_never_within_a_line() -> None:
    rows = [(str(number),) for number in range(30)]
    path = "/" + "/".join(["folder"] * 30)

    assert printed(lambda to: to.table(("n",), rows))[-1] == " 29"
    assert printed(lambda to: to.table(("n",), rows, rest="shards"))[-2:] == [
        " 19",
        "and 10 more shards; --json lists them",
    ]
    lines = printed(lambda to: to.table(("shard", "rows"), [(path, "")]))
    assert "".join("".join(lines[1:]).split()) == path


def test_what_is_said_facts_and_lists_are_folded_between_words_in_a_terminal_and_places_are_not() -> None:
    text, place = io.StringIO(), "/data/my files/" + "x" * 90
    words = " ".join(["seven"] * 30)
    to = Terminal(Console(file=text, width=80, force_terminal=True, color_system=None, soft_wrap=True))

    to.facts({"predictions": words, "output": place})
    to.lines([("wrong", words)], rest="problems")
    to.say(words)
    to.say(f"  {place}")

    lines = text.getvalue().splitlines()
    assert f"output       {place}" in lines
    assert max(len(line) for line in lines if place not in line) <= 80
    assert [line[:19] for line in lines] == [
        *("predictions  seven ", "             seven ", "             seven "),
        "output       /data/",
        *("wrong  seven seven ", "       seven seven ", "       seven seven "),
        *["seven seven seven s"] * 3,
        "  /data/my files/xx",
    ]
    assert printed(lambda to: to.facts({"one": words * 9})) == [f"one  {words * 9}"]


def test_sizes_and_times_are_told_in_words() -> None:
    assert [byte_size(number) for number in (999, 3_540_000, 2 * 10**9)] == ["999 bytes", "3.5 MB", "2.0 GB"]
    assert [duration(seconds) for seconds in (0.2, 90, 9000)] == ["about 1 s", "about 2 min", "about 2.5 h"]


def test_run_shows_its_facts_and_the_first_of_what_failed(telling_manifest: RunManifest) -> None:
    failures = tuple(FailureRecord(f"{number}.parquet", "cut") for number in range(30))

    lines = printed(show_run, replace(telling_manifest, failures=failures))

    assert lines[0].startswith("not scored          30 failures; when what is wrong is mended")
    assert "output              /out put [1]" in lines
    assert lines[-2:] == ["failed  19.parquet: cut", "and 10 more failures; the manifest lists them"]


def test_partitions_that_completed_need_no_words() -> None:
    run = {"partition": "date=1", "state": "Completed", "rows": 1234, "errors": 1, "seconds": 2.0, "message": "done"}

    lines = printed(show_partitions, [run, run | {"partition": "date=2", "state": "Failed", "message": "no [disk]"}])

    assert [line.split() for line in lines[1:]] == [
        ["date=1", "Completed", "1,234", "1", "2.0"],
        ["date=2", "Failed", "1,234", "1", "2.0", "no", "[disk]"],
    ]


def test_verification_names_problems_or_says_that_all_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    right = VerificationReport(num_rows=1, num_files=2, problems=(), num_more=0)
    wrong = replace(right, problems=(Problem("predictions/a.parquet", 7, "id is 1, expected 2"),), num_more=30)
    rescored = Rescored(num_rows=3, difference=2e-7, problems=())

    assert printed(show_verified, right, rescored, ()) == [
        "1 row in 2 files are right.",
        "3 rows scored again, 2e-07 apart at most.",
    ]
    assert printed(show_verified, wrong, None, wrong.problems) == [
        "wrong  predictions/a.parquet, row 7: id is 1, expected 2",
        "and 11 more problems; --json lists them",
    ]
    assert recorded(capsys, show_verified, wrong, None, wrong.problems) == {
        "rows": 1,
        "files": 2,
        "scored_again": None,
        "problems": [{"path": "predictions/a.parquet", "row": 7, "what": "id is 1, expected 2"}],
        "num_more": 30,
    }


FIGURES = Figures(
    num_rows=1234,
    accuracy=0.75,
    macro_f1=0.5,
    majority_accuracy=0.4,
    log_loss=0.6,
    auroc=None,
    ece=0.0123,
    per_class={"spam": ClassFigures(precision=0.5, recall=1.0, f1=0.6667, num_rows=617)},
    confusion=((),),
    ece_before_scaling=0.1,
)
CARD = Card(
    version="v1",
    test=FIGURES,
    data=Data(
        source="data",
        also=("more",),
        tokens_column="tokens",
        label_column="label",
        group_column="group",
        partition="date",
        window=None,
        since=None,
        num_files=1,
        num_unlabelled=0,
        num_unusable=0,
        split_by="group",
        rows={"train": 9000, "test": 1234},
        rows_per_class={},
    ),
    training=Training(settings={"seed": 1}, stopped_by="time", best_epoch=1, seconds=12.3, epochs=({}, {})),
    judgement=Judgement(
        outcome="rejected",
        why="it is worse",
        objections=(),
        at="2026-11-22",
        against=None,
        metric="accuracy",
        margin=0.01,
        classes={},
        num_rows=1234,
        champion=FIGURES,
        challenger=FIGURES,
        difference={},
        flips={},
        lost_classes=(),
        examples={},
    ),
)


def test_card_shows_data_training_figures_and_what_was_decided(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(show_card, CARD, "since today: [good]") == [
        "champion    since today: [good]",
        "version     v1",
        "trained on  data, more: train 9,000, test 1,234 rows, split by group",
        "training    2 epochs in 12 s, the best was 1; stopped by time, from scratch",
        "test        accuracy 0.7500, macro-F1 0.5000, log loss 0.6000, calibration error 0.0123, "
        "before scaling 0.1000, commonest class 0.4000, on 1,234 rows",
        "rejected    2026-11-22: it is worse",
        " class  precision  recall  F1      test rows",
        " spam   0.5000     1.0000  0.6667  617",
    ]
    assert recorded(capsys, show_card, CARD, None) == json.loads(card_to_json(CARD))
    assert printed(show_card, Card(version="v1"), None) == ["version  v1"]  # a checkpoint from elsewhere


def test_list_shows_champion_judgement_and_damage() -> None:
    row = {"version": "v1", "champion": False, "judged": "rejected", "accuracy": None, "macro_f1": None}
    row |= {"source": None, "damage": None}

    lines = printed(
        show_list, [row, row | {"damage": "card.json is damaged"}, row | {"champion": True, "accuracy": 0.5}]
    )

    assert [line.split()[1:] for line in lines[1:]] == [
        ["rejected"],
        ["card.json", "is", "damaged"],
        ["champion", "0.5000"],
    ]


def test_comparison_by_cards_shows_changes_and_that_rows_differ() -> None:
    other = replace(
        CARD,
        version="v2",
        data=None,
        test=replace(FIGURES, accuracy=0.8, per_class={}),
        training=replace(CARD.training, settings={"seed": 2}),
    )

    lines = printed(show_cards, CARD, other)

    assert lines[0].split() == ["v1", "v2", "change"]
    assert lines[1].split() == ["accuracy", "0.7500", "0.8000", "+0.0500"]
    assert lines[-2:] == [
        "seed: 1, then 2",
        "These figures are of other rows each; --source compares both on the same ones.",
    ]


def test_comparison_on_the_same_rows_shows_the_interval_flips_and_examples() -> None:
    example = {"row": "a.parquet:7", "label": "x", "champion": "x", "challenger": "y"}
    compared = Compared(
        num_rows=100,
        champion=FIGURES,
        challenger=replace(FIGURES, accuracy=0.5),
        difference=Difference("accuracy", -0.25, -0.3, -0.2),
        flips=Flips(num_lost=26, num_won=1, groups_lost=9, groups_won=0),
        lost_classes=(),
        examples={"lost": [example]},
    )

    lines = printed(show_compared, "v1", "v2", compared)

    assert lines[1].split() == ["accuracy", "0.7500", "0.5000", "-0.2500"]
    assert lines[-3:] == [
        "On 100 rows: accuracy -0.2500, 90% interval -0.3000 to -0.2000",
        "1 rows won, 26 lost, p 0.0039",
        "lost  a.parquet:7: x, named x, then y",
    ]
