"""The page as a browser has it: nothing is asked for or executed, filters work, and anybody can read it."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from browser import CHROMIUM, WHY_NOT, Page, axe_core, open_browser
from builders import make_champion, make_network
from flows.classify import classify
from flows.operations.explain import Explanation
from flows.pages.page import MOST_BYTES, explanation_html, render_page
from flows.pages.report import report_output
from flows.pages.shading import shade

SCRIPT = "<script>window.run=1;alert(1)</script>"
HOSTILE = (
    f'"><img src=http://127.0.0.1:9/x onerror="window.run=2">{SCRIPT}',
    "'};alert(3);//</style></script><svg onload=alert(4)>",
    "\u202egnp.exe\u2066\x00\x1b[2J\u200b",
    "{{ 7 * 7 }}{% raw %}${alert(5)}",
    "e\u0301\u0301\u0301\u0301\u0301" * 9,
    "x" * 1_000_000,
)


@pytest.fixture(scope="module")
def hostile(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an output whose names, ids, labels, classes and tokens are meant to do harm."""
    folder = tmp_path_factory.mktemp("hostile")
    make_champion(folder / "registry", make_network(classes=HOSTILE[:4], num_embeddings=257))
    name = "label<img src=x onerror=alert(6)>"
    file = folder / "data" / f"site={HOSTILE[3].replace('/', '')}" / "<svg onload=alert(7)>.parquet"
    file.parent.mkdir(parents=True)
    tokens = [each.encode() for each in HOSTILE] + [None, b""]
    table = {"id": [*HOSTILE, "a", "b"], "tokens": tokens, name: [*HOSTILE[1:], HOSTILE[0], "c", "d"]}
    pq.write_table(pa.table(table), file)
    (folder / "data" / f"{SCRIPT.replace('/', '')}.parquet").write_bytes(b"torn")
    output = folder / "output"
    classify(str(folder / "data"), str(output), registry=str(folder / "registry"), label_column=name, return_state=True)
    (page,) = (output / "runs").glob("*.html")
    return page


@pytest.fixture(scope="module")
def integers(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an output whose tokens are ids of a vocabulary of 500."""
    folder = tmp_path_factory.mktemp("integers")
    make_champion(folder / "registry", make_network(num_embeddings=501))
    random = np.random.default_rng(43)
    tokens = [random.integers(0, 500, 30).tolist() for _ in range(40)]
    pq.write_table(pa.table({"tokens": tokens}), folder / "data.parquet")
    output = folder / "output"
    classify(str(folder / "data.parquet"), str(output), registry=str(folder / "registry"), return_state=True)
    (page,) = (output / "runs").glob("*.html")
    return page


@pytest.fixture(scope="module")
def pages(scored: Any, trained: Any, hostile: Path, integers: Path) -> dict[str, Path]:
    run_id = trained.state.state_details.flow_run_id
    return {
        "output with errors": scored.output / scored.manifest.report,
        "retraining": trained.registry / "runs" / f"{run_id}.html",
        "list of integers": integers,
        "hostile": hostile,
    }


KINDS = ("output with errors", "retraining", "list of integers", "hostile")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip(WHY_NOT)
    with open_browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.mark.parametrize("kind", KINDS)
def test_page_asks_for_nothing_executes_nothing_and_fits_a_phone(
    browser: Page, pages: dict[str, Path], kind: str
) -> None:
    assert pages[kind].stat().st_size < MOST_BYTES
    for width in (1280, 390):
        browser.look(width)
        browser.open(pages[kind])
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert (browser.complaints, browser.dialogs) == ([], [])
        assert browser.requests == [pages[kind].absolute().as_uri()]
        assert browser.run("typeof window.run") == "undefined"
        assert browser.run("document.querySelectorAll('img, iframe, object, embed, svg[onload]').length") == 0
        assert browser.run("document.scripts.length") == 1
        links = browser.run("[...document.links].map(link => link.getAttribute('href'))")
        assert links
        assert all(link.startswith("#") for link in links)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checker_of_accessibility_finds_nothing(browser: Page, pages: dict[str, Path], kind: str, dark: bool) -> None:
    axe = axe_core()
    if axe is None:
        pytest.skip("no axe-core: npm install --global axe-core")
    browser.look(1280, dark=dark)
    browser.open(pages[kind])
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    browser.run(axe.read_text(encoding="utf-8") + ";0")

    found = browser.run("axe.run(document, {resultTypes: ['violations']})")

    shown = [(each["id"], each["help"], [node["html"] for node in each["nodes"][:3]]) for each in found["violations"]]
    assert shown == []


def test_hostile_text_is_shown_harmlessly(browser: Page, hostile: Path) -> None:
    browser.look(1280)
    browser.open(hostile)

    text = browser.run("document.body.innerText")

    assert "<script>window.run=1;alert(1)</script>" in text
    assert "⟨202E⟩gnp.exe⟨2066⟩␀␛[2J⟨200B⟩" in text
    assert "{{ 7 * 7 }}" in text
    assert "(1,000,000 characters)" in text
    assert not {"\u202e", "\u2066", "\x00", "\x1b", "\u200b"} & set(hostile.read_text(encoding="utf-8"))


def test_rows_are_searched_and_filtered_by_mouse_and_keyboard(browser: Page, pages: dict[str, Path]) -> None:
    browser.look(1280)
    browser.open(pages["output with errors"])
    rows = "document.querySelectorAll('#rows article')"
    shown = f"[...{rows}].filter(row => row.checkVisibility()).map(row => row.innerText)"
    total = browser.run(f"{rows}.length")
    assert len(browser.run(shown)) == total > 20

    browser.click("#filter [name=search]")
    browser.send("Input.insertText", text="No Tokens")
    found = browser.run(shown)
    assert 0 < len(found) < total
    assert all("no" in text.lower() and "tokens" in text.lower() for text in found)
    assert browser.run("document.querySelector('#filter output').textContent") == f"{len(found)} of {total} rows"

    browser.click("#filter button")
    assert len(browser.run(shown)) == total

    browser.run("document.querySelector('#filter [name=search]').focus()")
    browser.press("Tab")
    browser.press("ArrowDown")
    reason = browser.run("document.querySelector('#filter [name=why]').value")
    assert reason
    found = browser.run(shown)
    assert 0 < len(found) < total
    assert all(reason in text for text in found)


def test_page_is_whole_without_scripts(browser: Page, pages: dict[str, Path]) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["output with errors"])
        tree = browser.send("DOM.getDocument", depth=-1)["root"]["nodeId"]
        form = browser.send("DOM.querySelector", nodeId=tree, selector="#filter[hidden]")["nodeId"]
        rows = browser.send("DOM.querySelectorAll", nodeId=tree, selector="#rows article:not([hidden])")["nodeIds"]
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)

    assert form
    assert len(rows) > 20


def test_rows_are_left_out_before_a_page_is_too_large(scored: Any, trained: Any) -> None:
    report = report_output(str(scored.output), str(trained.registry), 100)
    row = next(row for row in report.rows if row.tokens and row.tokens.num_tokens > 10)
    long = replace(row, tokens=shade(bytes(range(256)), np.full(256, 1 / 256)))

    page = render_page(replace(report, rows=(long,) * 5000))

    assert MOST_BYTES * 0.9 < len(page.encode()) < MOST_BYTES
    assert "more rows would make this page too large" in page


def test_many_partitions_and_classes_make_no_larger_page(scored: Any, trained: Any) -> None:
    report = report_output(str(scored.output), str(trained.registry), 0)
    assert report.figures is not None
    part = report.figures.parts[0]
    predictions = {f"class {number}": 3 for number in range(3000)}
    parts = tuple(replace(part, name=f"hour={number}", predictions=predictions) for number in range(500))
    confusion = {(name, name): 3 for name in predictions}
    figures = replace(
        report.figures, classes=tuple(predictions), predictions=predictions, parts=parts, confusion=confusion
    )

    page = render_page(replace(report, figures=figures, runs=report.runs * 500))

    assert len(page.encode()) < 300_000
    assert "2,970 more classes" in page


def test_one_row_makes_a_piece_of_html_of_its_own() -> None:
    weights = np.array([0.91] + [0.01] * 9, np.float32)
    html = explanation_html(Explanation("v1", b"<b>hot</b>", "x", {"x": 1.0}, weights, (), {}))

    assert html.startswith("<style>")
    assert '<mark class="a4">&lt;</mark>b&gt;hot&lt;/b&gt;' in html


def test_a_page_that_fails_is_no_failure_of_the_run(
    output_copy: Path, rescore: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(output_copy / "predictions" / "date=2026-11-04")
    monkeypatch.setattr("flows.orchestration.report.write_page", lambda *_: 1 / 0)

    again = rescore(output_copy)

    assert again.state.is_completed()
    assert again.manifest.report == ""
    assert again.manifest.notes == ("no report was made: ZeroDivisionError: division by zero",)
    assert not (output_copy / "runs" / f"{again.manifest.run_id}.html").exists()


def test_no_page_is_made_of_a_run_that_had_nothing_to_do(output_copy: Path, rescore: Callable[..., Any]) -> None:
    again = rescore(output_copy)

    assert again.manifest.report == ""
    record = json.loads((output_copy / "runs" / f"{again.manifest.run_id}.json").read_text())
    assert record["report"] == ""
