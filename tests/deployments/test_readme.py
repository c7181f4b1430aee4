"""The READMEs: Prefect and attnlstm have their commands, and the files that the one of deployments names are there."""

import re
import shlex
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from cyclopts import App, MissingArgumentError
from prefect.cli import _app as prefect_app

from flows.cli.app import app as attnlstm_app

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
TEXT = (DEPLOYMENTS / "README.md").read_text(encoding="utf-8")
TEXTS = [TEXT, (DEPLOYMENTS.parent / "README.md").read_text(encoding="utf-8")]

# Options of `prefect` itself, which come before the command.
_PREFECTS_OWN = {"--no-prompt"}


def _commands(program: str) -> list[str]:
    """In blocks and in running text; of `a | b`, where one of them is to be chosen, the first."""
    lines: list[str] = []
    for text in TEXTS:
        blocks = re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
        lines += [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", text)
    return sorted({line.partition(" | ")[0] for line in lines if re.match(rf"([A-Z_]+=\S+ )*{program} ", line)})


def _check(app: App, words: list[str]) -> None:
    with suppress(MissingArgumentError):  # in running text a command may be named without all of its arguments
        app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("command", _commands("prefect"))
def test_prefect_has_the_command(command: str) -> None:
    words = shlex.split(command.replace(" ID", f" {UUID(int=0)}"), comments=True)
    words = [word for word in words if word not in _PREFECTS_OWN]

    _check(prefect_app, words[words.index("prefect") + 1 :])


@pytest.mark.parametrize("command", _commands("attnlstm"))
def test_attnlstm_has_the_command(command: str) -> None:
    _check(attnlstm_app, shlex.split(command.replace("SOURCE...", "SOURCE"), comments=True)[1:])


def test_files_that_it_names_are_there() -> None:
    named = set(re.findall(r"(?:deployments|tests|flows|storage)/[\w./-]+\.\w+", TEXT))
    linked = {link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link}

    assert len(named) >= 5
    assert [name for name in sorted(named) if not (DEPLOYMENTS.parent / name).is_file()] == []
    assert [link for link in sorted(linked) if not (DEPLOYMENTS / link).exists()] == []


def test_every_file_beside_it_is_in_it() -> None:
    files = {path.name for path in DEPLOYMENTS.iterdir() if path.is_file()} - {"README.md"}

    assert [name for name in sorted(files) if name not in TEXT] == []
