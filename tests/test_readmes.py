"""Every README does what it says: its blocks run in order, in a fresh folder, and the output that it shows comes out.

What a block is follows from its language: `sh` is commands, `console` is commands after `$ ` with their output,
`python` and `sql` (of DuckDB) are run, and `text`, `yaml` and `ini` are only looked at. HTML comments, which readers do
not see, say what else a test has to know; each is about the block that follows it:

    <!-- test has: NAME NAME ... -->          of what a reader has: `labelled`, a small sample, and its `registry`
    <!-- test: COMMAND -->                    run this first; it makes what else a reader has
    <!-- test adds to "PREFIX": OPTIONS -->   from here on commands that begin like this get these options, to be quick
    <!-- numbers vary -->                     in the output any number, byte size or version stands for any other
    <!-- output -->                           the block, `text`, is what the block before it prints
    <!-- exit code N -->                      how the block's last command ends, if not with 0
    <!-- not run: REASON -->                  nothing of it is run; commands of attnlstm and Prefect are parsed

In shown output `...` stands for any text, and white space of any length for one space.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest
import yaml
from cyclopts import App, MissingArgumentError
from prefect.cli._app import _app as prefect_app

from flows.cli import app as cli

REPOSITORY = Path(__file__).resolve().parents[1]
READMES = sorted(
    path
    for path in (REPOSITORY / "README.md", *REPOSITORY.glob("*/README.md"))
    if path.parent.name in ("attnlstm", "deployments", "flows", "storage") or path.parent == REPOSITORY
)
LOOKED_AT = {"text", "yaml", "ini"}
RUN = {"sh", "console", "python", "sql"}

# Pieces of shown output that stand for others like them, and what these look like.
VERSION = r"\d{8}T\d{6}Z-[0-9a-f]{8}"
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?: (?:bytes|kB|MB|GB)\b)?"


def name_of(readme: Path) -> str:
    return str(readme.relative_to(REPOSITORY))


@dataclass
class Block:
    """A fenced block. notes: the comments before it, as (kind, argument) pairs."""

    language: str
    text: str
    line: int
    notes: list[tuple[str, str]] = field(default_factory=list)

    def has(self, kind: str) -> bool:
        return any(found == kind for found, _ in self.notes)


def blocks_of(readme: Path) -> list[Block]:
    pieces = re.compile(
        r"^<!-- (?P<kind>test adds to|test has|test|numbers vary|output|exit code|not run)(?P<argument>.*?) -->$"
        r"|^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
        flags=re.MULTILINE | re.DOTALL,
    )
    text = readme.read_text(encoding="utf-8")
    blocks, notes = [], []
    for match in pieces.finditer(text):
        if match["kind"]:
            notes.append((match["kind"], match["argument"].removeprefix(":").strip()))
        else:
            line = text.count("\n", 0, match.start()) + 1
            blocks.append(Block(match["language"], match["text"], line, notes))
            notes = []
    assert not notes, f"{name_of(readme)} ends with a comment about a block that does not come: {notes}"
    return blocks


def commands_of(block: Block) -> list[tuple[str, str]]:
    """The commands of a block, each with the output that it shows."""
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        lines = (line.partition("    #")[0].strip() for line in text.splitlines())
        return [(line, "...") for line in lines if line]
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), ""))
        else:
            assert found, f"a console block begins with a command after '$ ', not with {line!r}"
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


def comes_out(shown: str, printed: str, numbers_vary: bool) -> bool:
    """Whether what was printed is what is shown, by the conventions at the top."""
    pattern = ""
    for piece in re.split(rf"(\.\.\.|{VERSION}|{NUMBER})", " ".join(shown.split())):
        if piece == "...":
            pattern += ".*"
        elif numbers_vary and re.fullmatch(VERSION, piece):
            pattern += VERSION
        elif numbers_vary and re.fullmatch(NUMBER, piece):
            pattern += NUMBER
        else:
            pattern += re.escape(piece)
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


@dataclass
class Reader:
    """Somebody who does what a README says, in the folder that the process is in."""

    environment: dict[str, str]
    additions: dict[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    def run(self, command: str) -> tuple[int, str]:
        """The exit code of a command and what it prints, errors included."""
        for prefix, options in self.additions.items():
            if command.startswith(prefix):
                command = f"{command} {options}"
        if command.startswith("attnlstm ") and not re.search(r"[|;&<>$]", command):
            return self._attnlstm(shlex.split(command)[1:])
        done = subprocess.run(
            ["bash", "-e", "-c", command],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout

    def _attnlstm(self, words: list[str]) -> tuple[int, str]:
        """In this process, which has loaded already what takes a new one seconds."""
        before = dict(os.environ)
        printed = io.StringIO()
        code: int | str | None = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["attnlstm", *words])
            try:
                with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                    cli.main()
            except SystemExit as ended:
                code = ended.code
        os.environ.clear()
        os.environ.update(before)
        assert isinstance(code, int)
        return code, printed.getvalue()

    def python(self, text: str) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, "README", "exec"), self.names)
        return printed.getvalue()


@pytest.fixture
def reader(prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")  # so that no path is folded
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    return Reader({**os.environ, "PATH": os.pathsep.join(folders), "PREFECT_API_URL": prefect_server})


@pytest.fixture(scope="module")
def belongings(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what readers of the packages' pages have already. Read only."""
    folder = tmp_path_factory.mktemp("belongings")
    with contextlib.chdir(folder):
        for command in (
            "attnlstm sample labelled --rows 1200 --fragment-bytes 64 --days 3",
            "attnlstm retrain labelled --registry registry --preset reference --epochs 30",
        ):
            code, printed = Reader({}).run(command)
            assert code == 0, printed
    return folder


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_what_a_readme_shows_is_what_comes(readme: Path, reader: Reader, request: pytest.FixtureRequest) -> None:
    printed = ""
    for block in blocks_of(readme):
        where = f"{name_of(readme)}, line {block.line}"
        for kind, argument in block.notes:
            if kind == "test has":
                for name in argument.split():
                    shutil.copytree(request.getfixturevalue("belongings") / name, name)
            elif kind == "test":
                code, output = reader.run(argument)
                assert code == 0, f"{where}: {argument}\n{output}"
            elif kind == "test adds to":
                prefix, _, options = argument.partition(": ")
                reader.additions[prefix.strip('"')] = options
        if block.has("not run"):
            continue
        varies = block.has("numbers vary")
        if block.language == "python":
            printed = reader.python(block.text)
        elif block.language == "sql":
            printed = str(duckdb.sql(block.text))
        elif block.language in ("sh", "console"):
            commands = commands_of(block)
            codes = [0] * len(commands)
            codes[-1] = int(dict(block.notes).get("exit code", 0))
            for (command, shown), expected in zip(commands, codes, strict=True):
                code, printed = reader.run(command)
                assert code == expected, f"{where}: {command}\n{printed}"
                assert comes_out(shown, printed, varies), (
                    f"{where}: {command}\n{shown}\nis shown, and this came:\n{printed}"
                )
        elif block.has("output"):
            assert comes_out(block.text, printed, varies), (
                f"{where}:\n{block.text}\nis shown, and this came:\n{printed}"
            )


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_block_has_a_language_and_every_exception_a_reason(readme: Path) -> None:
    for block in blocks_of(readme):
        assert block.language in RUN | LOOKED_AT, f"{name_of(readme)}, line {block.line}: {block.language!r}"
        assert all(argument for kind, argument in block.notes if kind == "not run")
        if block.language == "yaml":
            yaml.safe_load(block.text)


def _named_commands(program: str) -> list[str]:
    """In blocks, which need not be run, and in running text; of `a | b`, where one is to be chosen, the first."""
    lines: list[str] = []
    for readme in READMES:
        for block in blocks_of(readme):
            if block.language in ("sh", "console"):
                lines += [command for command, _ in commands_of(block)]
        lines += re.findall(r"`([^`\n]+)`", readme.read_text(encoding="utf-8"))
    return sorted({line.partition(" | ")[0] for line in lines if re.match(rf"([A-Z_]+=\S+ )*{program} [^.=]", line)})


@pytest.mark.parametrize(("program", "app"), [("prefect", prefect_app), ("attnlstm", cli.app)])
def test_commands_and_options_that_readmes_name_are_there(program: str, app: App) -> None:
    commands = _named_commands(program)
    assert len(commands) >= 8
    for command in commands:
        words = shlex.split(command.replace(" ID", f" {UUID(int=0)}").replace("SOURCE...", "SOURCE"), comments=True)
        words = words[: words.index(">")] if ">" in words else words
        words = [word for word in words[words.index(program) + 1 :] if word not in ("--no-prompt", "--verbose")]
        with suppress(MissingArgumentError):  # in running text a command may be named without its arguments
            app.parse_args(words, exit_on_error=False, print_error=False)


def _leaves(app: App, path: tuple[str, ...] = ()) -> Iterator[tuple[str, App]]:
    for name in app:
        if not name.startswith("-"):
            if any(not each.startswith("-") for each in app[name]):
                yield from _leaves(app[name], (*path, name))
            else:
                yield " ".join((*path, name)), app[name]


def test_every_command_is_in_a_readme_and_every_option_is_explained_by_help() -> None:
    texts = "\n".join(readme.read_text(encoding="utf-8") for readme in READMES)
    leaves = dict(_leaves(cli.app))
    assert {"classify", "checkpoints rollback"} <= leaves.keys()
    for name, command in leaves.items():
        last = name.rpartition(" ")[2]
        assert re.search(rf"attnlstm {name}\b|attnlstm checkpoints [\w |.]*\b{last}\b", texts), name
        assert command.help, name
        for argument in command.assemble_argument_collection(parse_docstring=True):
            assert argument.parameter.help, f"{name} {argument.name}"


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_files_that_a_readme_names_are_there(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            path, _, heading = link.partition("#")
            target = readme.parent / path if path else readme
            assert target.exists(), link
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
            assert not heading or heading in {_anchor(each) for each in headings}, link
    for named in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|md|json|env|svg)|(?:\w+/)+)`", text):
        if named.split("/")[0] in ("attnlstm", "deployments", "flows", "storage", "tests"):
            assert (REPOSITORY / named).exists(), named


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_targets_that_readmes_name_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    texts = "\n".join(readme.read_text(encoding="utf-8") for readme in READMES)
    named = set(re.findall(r"(?:`|^|\$ )make ([\w-]+)", texts, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets, named - targets


def test_every_file_of_deployments_is_in_its_readme() -> None:
    folder = REPOSITORY / "deployments"
    files = {path.name for path in folder.iterdir() if path.is_file()} - {"README.md", "__init__.py"}
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert [name for name in sorted(files) if name not in text] == []


def test_the_first_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= 1500


@pytest.mark.parametrize(
    ("shown", "printed", "numbers_vary", "comes"),
    [
        ("3 files of 1,204 rows", "3 files  of\n1,204 rows", False, True),
        ("3 files", "4 files", False, False),
        ("3 files, accuracy 0.97, p 1e-05", "12 files, accuracy 1.0000, p 0.3", True, True),
        ("3 files", "no files", True, False),
        ("from 1 file of 16.9 kB", "from 2 file of 812 bytes", True, True),
        ("20261122T123405Z-f2f0c9d3 is champion", "20270101T000000Z-00aa00aa is champion", True, True),
        ("first\n...\nlast", "first between last", False, True),
        ("first ...", "second", False, False),
        ("date=2026-11-01/part-0.parquet", "date=2026-11-02/part-0.parquet", False, False),
    ],
)
def test_shown_output_is_compared(shown: str, printed: str, numbers_vary: bool, comes: bool) -> None:
    assert comes_out(shown, printed, numbers_vary) == comes
