"""The commands about a registry's checkpoints.

Reads storage and prints. Knows nothing about Prefect, so that these commands are quick.
"""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape
from rich.table import Table

from flows.printing import out
from flows.session import DONE
from storage.registry import Registry


def list_checkpoints(*, registry: str = "registry", as_json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """List the checkpoints of a registry, oldest first.

    Args:
        registry: Folder or URI of the checkpoint registry.
        as_json: Print JSON, for scripts.
    """
    opened = Registry.open(registry)
    alias = opened.alias()
    rows = []
    for version in opened.versions():
        card = opened.load(version).card
        test = card.get("test", {})
        rows.append(
            {
                "version": version,
                "champion": alias is not None and alias.version == version,
                "accuracy": test.get("accuracy"),
                "macro_f1": test.get("macro_f1"),
                "source": card.get("data", {}).get("source"),
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return DONE
    if not rows:
        out.print(f"No checkpoints in {opened.root}. Train one with `attnlstm retrain SOURCE --registry {registry}`.")
        return DONE
    table = Table("version", "champion", "accuracy", "macro-F1", "trained on", box=None)
    for row in rows:
        measures = [f"{row[name]:.4f}" if row[name] is not None else "" for name in ("accuracy", "macro_f1")]
        table.add_row(row["version"], "yes" if row["champion"] else "", *measures, row["source"])
    out.print(table)
    if alias:
        out.print(f"champion since {alias.since}: {escape(alias.why)}")
    return DONE
