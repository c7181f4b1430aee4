"""The demo: from nothing to predictions, with the commands that a user would type."""

import shlex
from pathlib import Path

from flows.cli import DONE, commands, outputs
from flows.cli.printing import printer
from storage.registry.checkpoints import CHAMPION, Registry

# The published sizes: the smallest network, which sees the sample most often in the time.
_PRESET = "reference"
# Long enough to learn what there is to learn, short enough to watch.
_TRAINING_SECONDS = 60

_NEXT = """\
Three things to try next:

  How many fragments of each type, by date
    {python} -c "import storage; print(storage.open_predictions('{output}').sql(
      'SELECT date, prediction, count(*) AS n FROM self GROUP BY 1, 2 ORDER BY 1, 2').collect())"

  Where the network looked, in the rows that it is least sure of
    {python} -c "import storage; print(storage.open_attention('{output}').sort('score').head(8).collect()
      .select('id', 'prediction', 'score', 'weights'))"

  Score again: only what is new or changed is scored
    {attnlstm} classify {sample} {output} --registry {registry} --label-column label"""


def demo(folder: str = "demo") -> int:
    """Sample real bytes, train on them, classify them, and say what to try next. Safe to run again.

    Args:
        folder: Folder for the sample, the registry and the output.
    """
    sample, registry, output = (str(Path(folder) / name) for name in ("sample", "registry", "output"))
    _show("sample", sample)
    commands.sample(sample)
    if Registry.open(registry).alias() is None:
        options = ("--preset", _PRESET, "--max-seconds", str(_TRAINING_SECONDS))
        _show("retrain", sample, "--registry", registry, *options)
        if code := commands.retrain(sample, registry=registry, preset=_PRESET, max_seconds=_TRAINING_SECONDS):
            return code
    else:
        printer().say(f"\n{registry} has a champion already, so nothing is trained.")
    _show("classify", sample, output, "--registry", registry, "--label-column", "label")
    if code := commands.classify(sample, output, registry=registry, label_column="label"):
        return code
    _show("report", output, "--registry", registry)
    outputs.report(output, registry=registry)
    test = Registry.open(registry).load(CHAMPION).card.test
    commands_of = Path(".venv/bin") if Path(".venv/bin/attnlstm").exists() else Path()
    python, attnlstm = str(commands_of / "python"), str(commands_of / "attnlstm")
    to = printer()
    if test:
        to.say(f"\nAccuracy on files that training never saw: {test.accuracy:.4f}")
    to.say(f"The output: {output}\n")
    to.say(_NEXT.format(python=python, attnlstm=attnlstm, sample=sample, output=output, registry=registry))
    to.say(f"\nThe report, to be opened in a browser: {(Path(output) / 'report.html').resolve()}")
    return DONE


def _show(*command: str) -> None:
    printer().say(f"\n$ attnlstm {shlex.join(command)}")
