"""Where results go: a table, the figures and a picture in a folder, and what the READMEs say of them.

Records of parts that were not measured stay as they are. Knows nothing about how anything is measured.
"""

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contenders import BUNDLES, FLOW, PEERS
from findings import markdown
from picture import draw

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results")

AVX2 = ", AVX2"
"""Ends the name of a part that was measured a second time, in a process that is kept to AVX2."""

# Columns of the table, the hidden size of the default preset first.
COLUMNS = {"end-to-end": "hidden 32, without n-grams", "hidden-16": "hidden 16, preset `reference`"}

NAMES = {
    FLOW: "`attnlstm classify`",
    BUNDLES: "the same shards without Prefect",
    "torch, sorted": "torch, rows sorted by length, oneDNN",
    "ONNX Runtime, sorted": "ONNX Runtime, rows sorted by length",
    "Ray Data": "Ray Data",
}

_TABLE = re.compile(r"(?<=<!-- speed -->\n\n).*?(?=\n\n<!-- /speed -->)", re.DOTALL)
_SENTENCE = re.compile(r"^Parquet to Parquet with attention weights, .*?(?=\n\n)", re.DOTALL | re.MULTILINE)


def write_results(folder: Path, name: str, record: dict[str, object], parts: Sequence[str]) -> None:
    """Put a part's record among the others, and write all files anew. parts: all that there may be, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "speed.json"
    known = json.loads(figures.read_text()) if figures.exists() else {}
    known[name] = record
    known = {part: known[part] for part in (*parts, *(part + AVX2 for part in parts)) if part in known}
    figures.write_text(json.dumps(known, indent=1) + "\n")
    (folder / "speed.md").write_text("\n".join(markdown(record) for record in known.values()))
    draw(known, folder / "speed.svg")
    if folder.resolve() == RESULTS:
        for readme in (REPOSITORY / "README.md", REPOSITORY / "attnlstm" / "README.md"):
            readme.write_text(with_speed(readme.read_text(encoding="utf-8"), known), encoding="utf-8")


def with_speed(text: str, known: dict[str, Any]) -> str:
    """A README with its table, or its sentence, of these records; as it is while they lack the default preset."""
    if "end-to-end" not in known or FLOW not in known["end-to-end"]["figures"]["contenders"]:
        return text
    text = _TABLE.sub(lambda _: _table(known), text)
    return _SENTENCE.sub(lambda _: _sentence(known["end-to-end"]), text)


def _table(known: dict[str, Any]) -> str:
    """Million tokens a second, and how much faster `classify` is, in the same turns."""
    columns = {}
    for part, title in COLUMNS.items():
        for name in (part, part + AVX2):
            if name in known:
                columns[f"{title}, {known[name]['machine']['instructions']}"] = known[name]["figures"]["contenders"]
    lines = [f"| million tokens a second | {' | '.join(columns)} |", f"|---{'|---:' * len(columns)}|"]
    for name, shown in NAMES.items():
        cells = [_cell(name, contenders[name]) if name in contenders else "" for contenders in columns.values()]
        if any(cells):
            lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name: str, found: dict[str, Any]) -> str:
    speed = f"{found['million_tokens_per_second']['median']:.3g}"
    times = found["times_slower_than_ours"]
    return f"{speed} ({times['low']:.2g}-{times['high']:.2g} times slower)" if name in PEERS else speed


def _sentence(record: dict[str, Any]) -> str:
    figures, machine = record["figures"], record["machine"]
    speeds = {
        name: f"{found['million_tokens_per_second']['median']:.3g}" for name, found in figures["contenders"].items()
    }
    shown = {"torch, sorted": "torch with rows sorted by length", "ONNX Runtime, sorted": "ONNX Runtime"}
    others = ", ".join(f"{shown.get(name, name)} {speed}" for name, speed in speeds.items() if name in PEERS)
    text = (
        f"Parquet to Parquet with attention weights, {figures['num_tokens'] / 1e6:.1f} million tokens in rows of "
        f"lognormal lengths, hidden size 32, on {machine['cores']} cores with {machine['instructions']}: "
        f"`attnlstm classify` {speeds[FLOW]} million tokens a second, {others}."
    )
    return "\n".join(textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False))
