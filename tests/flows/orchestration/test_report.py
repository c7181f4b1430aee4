"""What Prefect shows of a classify run: the report and its tables as values, and what arrives of them on a page."""

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from prefect import flow

from flows.orchestration.report import (
    drift_rows,
    publish_report,
    publish_tables,
    rows_in_markdown,
    run_report,
    shard_rows,
)
from flows.pages.rows import Row
from flows.pages.shading import shade
from storage.output.manifests import FailureRecord, RunManifest


def test_report_has_counts_shares_failures_and_where_errors_are_first_found(telling_manifest: RunManifest) -> None:
    report = run_report(telling_manifest)

    assert report.startswith("## 1,417 rows scored, 17 with errors, 1 failure\n")
    assert (
        "- **Rows**: 1,417 in 2 shards (5 more were up to date)\n- **Tokens**: 3,000,500 in 2.0 s, 1.50 mill" in report
    )
    assert "- **Against labels**: accuracy 0.7500, macro-F1 0.5000\n- **Drift**: which tokens " in report
    place = "file:///out%20put%20%5B1%5D"
    assert (
        f"- **Output**: [/out put [1]]({place})\n- **Manifest**: [/out put [1]/runs/3f2a.json]({place}/runs" in report
    )
    assert "- `c.parquet`: damaged: cut short\n" in report
    assert "- **no tokens**: 16 rows, first in `a.parquet` rows 3, 1001, 1002; `b.parquet` rows 20, 21\n" in report
    assert "- **tokens are null**: 1 row, first in `b.parquet` row 19\n" in report
    assert report.endswith("| class | rows | share |\n|---|---|---|\n| x | 1,000 | 71.4% |\n| y\\|z | 400 | 28.6% |\n")


def test_report_of_a_run_without_work_says_so(plain_manifest: RunManifest) -> None:
    assert run_report(plain_manifest).startswith("## Nothing to do: all 5 shards are up to date\n\n- **Checkpoint**")


def test_tables_have_failed_shards_first_and_numbers_to_read(telling_manifest: RunManifest) -> None:
    assert [list(row.values()) for row in shard_rows(telling_manifest)] == [
        ["c.parquet", "failed", "", "", "", "", "damaged: cut\nshort"],
        ["a.parquet", "scored", "1,307", "7", "3,000,000", "1.50", "missing"],
        ["b-00001-of-00002.parquet", "scored", "110", "10", "500", "0.25", "stale"],
    ]
    assert telling_manifest.drift is not None
    assert [list(row.values()) for row in drift_rows(telling_manifest.drift)] == [
        ["which tokens there are", "0.500", "0.2500", "0.1250", "yes"],
        ["how long the rows are", "0.000", "0.0000", "0.1250", "no"],
    ]


def test_report_cuts_long_lists_and_says_so(telling_manifest: RunManifest) -> None:
    shard = replace(telling_manifest.shards[0], predictions={f"class-{number:02d}": 1 for number in range(50)})
    failures = tuple(FailureRecord(f"{number}.parquet", "damaged") for number in range(1200))

    report = run_report(replace(telling_manifest, shards=(shard,), failures=failures))

    assert "| 30 more classes | 30 | 60.0% |" in report
    assert "- 1,190 more, in the table of shards and in the manifest" in report


@pytest.fixture
def publish(artifacts_of: Callable[..., dict[str, Any]]) -> Callable[[RunManifest], dict[str, Any]]:
    """Publishes a report in a flow run of its own; gives its artifacts by key."""

    def run(manifest: RunManifest) -> dict[str, Any]:
        @flow
        def publishing() -> None:
            publish_tables(manifest)
            publish_report(manifest)

        state: Any = publishing(return_state=True)
        assert state.is_completed(), state.message
        return artifacts_of(state)

    return run


def _logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """(level, message) of each line of the report."""
    records = [record for record in caplog.records if record.module == "report"]
    return [(record.levelname, record.getMessage()) for record in records]


def test_page_and_log_show_what_there_is_and_warn_of_errors_and_drift(
    publish: Callable[..., dict[str, Any]], telling_manifest: RunManifest, caplog: pytest.LogCaptureFixture
) -> None:
    failures = telling_manifest.failures * 1200
    artifacts = publish(replace(telling_manifest, failures=failures))

    assert sorted(artifacts) == ["classify-drift", "classify-output", "classify-report", "classify-shards"]
    assert str(artifacts["classify-report"].data).startswith("## 1,417 rows scored, 17 with errors")
    assert artifacts["classify-output"].data == "[/out put [1]](file:///out%20put%20%5B1%5D)"
    assert len(json.loads(artifacts["classify-shards"].data)) == 1000
    assert artifacts["classify-shards"].description.endswith(": the first 1,000 of 1,202")
    assert artifacts["classify-drift"].description.startswith("Drift: which tokens there are (index 0.50): not as in ")
    lines = _logged(caplog)
    assert lines[:10] == [("ERROR", "c.parquet could not be scored: damaged: cut\nshort")] * 10
    warnings = [text.partition(":")[0] for level, text in lines if level == "WARNING"]
    assert warnings == ["errors", "first errors", "drift"]
    assert ("INFO", "manifest: /out put [1]/runs/3f2a.json") in lines


def test_page_and_log_of_a_run_without_work_warn_of_nothing(
    publish: Callable[..., dict[str, Any]], plain_manifest: RunManifest, caplog: pytest.LogCaptureFixture
) -> None:
    assert sorted(publish(plain_manifest)) == ["classify-output", "classify-report"]
    assert {level for level, _ in _logged(caplog)} == {"INFO"}


class _Shown(HTMLParser):
    """What a browser makes of a piece of HTML: its tags, and the text of each line."""

    def __init__(self, piece: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.lines = [""]
        self.feed(piece)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(f"{tag} {attrs}" if attrs else tag)
        if tag == "br":
            self.lines.append("")

    def handle_data(self, data: str) -> None:
        self.lines[-1] += data


def test_rows_in_markdown_are_marked_where_they_are_attended_to_and_do_nothing() -> None:
    hostile = "<script>alert(1)</script> [x](http://y) www.x.de `|*_~\\ &lt;"
    tokens = shade(hostile.encode() * 2, np.eye(1, 2 * len(hostile)).ravel())
    plain = Row(hostile, 7, "id", ("least sure",), hostile, 0.25, None, None, (), tokens, "", False)
    unread = replace(plain, tokens=None, note="the source can't be read from here")
    withheld = replace(plain, prediction=None)
    binary = replace(plain, tokens=shade(b"\0\1AB", np.array([0, 0, 1.0, 0])))

    text = rows_in_markdown([plain, unread, withheld, binary])

    found = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    inline = [child for token in found for child in token.children or ()]
    assert {token.type for token in found} == {"paragraph_open", "inline", "paragraph_close", "html_block"}
    assert {child.type for child in inline} == {"strong_open", "text", "strong_close"}
    said = ["".join(child.content for child in token.children or ()) for token in found if token.type == "inline"]
    assert said == [
        f"{hostile}, row 7: {hostile}, 25.0%",
        f"{hostile}, row 7: {hostile}, 25.0%",
        "the source can't be read from here",
        f"{hostile}, row 7: no prediction, 25.0%",
        f"{hostile}, row 7: {hostile}, 25.0%",
    ]
    shown = [_Shown(token.content) for token in found if token.type == "html_block"]
    assert [each.tags for each in shown] == [{"pre", "br", "mark"}, {"pre", "br", "mark"}, {"pre", "mark"}]
    assert "".join(shown[0].lines).rstrip() == hostile * 2
    assert max(map(len, shown[0].lines)) == 80
    assert shown[2].lines == ["00 01 41 42  \N{MIDDLE DOT}\N{MIDDLE DOT} A B\n"]
    assert "<pre><mark>&#60;</mark>script&#62;" in text
