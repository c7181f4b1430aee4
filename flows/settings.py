"""Every option once: its name, type, bounds, default and meaning.

The flows' parameters and Prefect's form, the command line, `plan`, and the record in an output's `_dataset.json` all
derive from the models here. To add an option, add a field to the model that it belongs to and use it where the model
is used. The docstring of a command's model is the command's help and its flow's description. Knows nothing about what
is done with an option, and imports neither Prefect nor torch.
"""

import functools
import inspect
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.fields import FieldInfo

from attnlstm.config import Attention, ModelConfig
from attnlstm.engines import Device, EngineName, Precision
from attnlstm.evaluation.abstention import PATTERN as ABSTAIN_PATTERN
from attnlstm.evaluation.comparison import Metric
from attnlstm.training.settings import DEFAULT, ClassWeights, PresetName
from flows.operations.promote import PromotionRules
from flows.operations.train import VanishedClasses
from storage.input.partitions import WINDOW_PATTERN, Partition
from storage.labelled.source import DEFAULT_GROUP
from storage.labelled.vocabulary import MOST_EMBEDDINGS
from storage.locations import CREDENTIALS_PATTERN, Location
from storage.output.layout import Output, OutputSettings
from storage.output.plan import Mode

if TYPE_CHECKING:
    from prefect import Flow

# A server that enforces the schema of a deployment's parameters refuses a URI with credentials before a run exists.
# For the schema alone: pydantic would show the value in its message. The pattern is all that the server has to say of a
# refusal, so it begins with words; that no place may be called like them does no harm.
_ADVICE = "a URI with credentials, which belong in the environment"
Place = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^(?!{_ADVICE}|{CREDENTIALS_PATTERN})"})]
DeltaPlace = Annotated[
    str,
    Field(pattern=r"^delta:."),
    WithJsonSchema({"type": "string", "pattern": f"^delta:(?!{_ADVICE}|{CREDENTIALS_PATTERN})."}),
]

RunnerName = Literal["threads", "ray", "dask"]
AttentionText = Annotated[str, Field(pattern=r"^(full|none|top:[1-9][0-9]*)$")]
Count = Annotated[int, Field(ge=1)]

_NEW = OutputSettings()


def option(default: Any, meaning: str) -> Any:
    """An option of a command. meaning: a sentence of help; bounds belong to the type of the field."""
    return Field(default, description=meaning)


def recorded(new: Any, meaning: str) -> Any:
    """An option that an output remembers. It is None unless it is said. new: its value in a new output."""
    shown = "none" if new in (None, []) else f'"{new}"' if isinstance(new, str) else f"{new}"
    text = f"{meaning} By default as in the output, and {shown} in a new one."
    return Field(None, description=text, json_schema_extra={"new_output": new})


class Options(BaseModel):
    """Options of a command. Bad values are refused, and so are names that are no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TargetOptions(Options):
    """What is to be scored, to where and by which checkpoint."""

    source: Place = option(
        ..., "Parquet file, folder, glob or URI to score. {scheduled:%Y-%m-%d} in it is the run's scheduled start."
    )
    output: Place = option(..., "Folder or URI for predictions, attention and the run's manifest.")
    registry: Place = option("registry", "Folder or URI of the checkpoint registry.")
    checkpoint: Place = option(
        "champion", '"champion", a version in the registry, or a folder with config.json and model.safetensors.'
    )
    mode: Mode = option(
        "missing",
        'Score what has no output ("missing"), also what another checkpoint scored ("stale"), files with errors that a '
        'longer max_tokens or a larger vocabulary may mend ("errors"), or "all".',
    )


class OutputOptions(Options):
    """What an output looks like. It is recorded in the output, and the same in all of its files."""

    save_attention: AttentionText | None = recorded(
        str(_NEW.attention), '"full", "none", or "top:K" for the K largest weights of each row with their positions.'
    )
    keep: list[str] | None = recorded([], "Input columns to carry through to the predictions.")
    id_column: str | None = recorded(
        _NEW.columns.id, "Column carried through as id. Without it, id is the row's position in its file."
    )
    tokens_column: str | None = recorded(
        _NEW.columns.tokens, "Column with the tokens: binary, string, or a list of integers."
    )
    label_column: str | None = recorded(
        None, "Column with the true class. It is carried through, and predictions are measured against it."
    )
    max_tokens: Count | None = recorded(_NEW.max_tokens, "Longest row that is scored whole, in tokens.")
    long_rows: Literal["truncate", "error"] | None = recorded(
        _NEW.long_rows, 'What longer rows get: a score of their first max_tokens ("truncate"), or an "error".'
    )
    abstain_below: Annotated[str, Field(pattern=ABSTAIN_PATTERN)] | None = recorded(
        _NEW.abstain_below,
        "Score below which a row gets no prediction, such as 0.8; or the precision that predictions of each class are "
        "to have, such as precision=0.95, by the validation rows on the checkpoint's card.",
    )
    shard_rows: Count | None = recorded(
        _NEW.limits.rows,
        "Rows of a large file that one task scores, in whole row groups; each shard has its own output file.",
    )
    shard_bytes: Count | None = recorded(
        _NEW.limits.bytes, "Bytes of a large file that one task scores, uncompressed, in whole row groups."
    )
    chunk_bytes: Count | None = recorded(
        _NEW.chunk_bytes,
        "Tokens that a worker reads, scores and writes at once, in bytes. Memory grows with it.",
    )

    def said(self) -> dict[str, Any]:
        """What an output is asked to look like, by name: the recorded options that were given."""
        return {name: value for name in self._recorded() if (value := getattr(self, name)) is not None}

    def open_output(self, output: str, mode: Mode) -> Output:
        """The output at a path or URI: as recorded, as said here or, in a new one, as the defaults have it.

        Raises OutputError if something that is said differs from what is recorded, with both values; but mode "errors"
        takes a longer max_tokens.
        """
        may_lengthen = mode == "errors"
        return Output.open(Location.parse(output), self.said(), self._recorded(), may_lengthen=may_lengthen)

    @classmethod
    def _recorded(cls) -> dict[str, Any]:
        """The options that an output records, with their values in a new one."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {name: extra["new_output"] for name, extra in extras.items() if isinstance(extra, dict)}


class RunnerOptions(Options):
    """What does the work of a run."""

    runner: RunnerName = option(
        "threads", 'What scores shards: "threads" of this process, or processes of a "ray" or "dask" cluster.'
    )
    address: str | None = option(
        None, "Where a Ray or Dask cluster runs. By default one is started on this machine for the run."
    )


class ComputeOptions(Options):
    """How scores are computed. It changes no more than the last digits of an output."""

    device: Device = option("auto", 'Where to compute. "auto" takes a GPU if there is one.')
    engine: EngineName = option(
        "auto", 'What computes. "auto" takes "fused-cpu" on a CPU where it fits, and "torch" for all others.'
    )
    precision: Precision = option(
        "float32",
        "Of numbers in the torch engine's LSTM. The short ones are faster for large networks, and less exact.",
    )
    workers: Count | None = option(
        None, "Shards scored side by side, and compute threads on a CPU. By default as many as there are cores."
    )


class ToleranceOptions(Options):
    """How much may go wrong before a run counts as failed. What was scored is written all the same."""

    max_errors: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+%|%)?$")] = option(
        "50%",
        "Most rows without a prediction among those that a run scores, as a count or a share such as 5%. With more of "
        "them the run ends Failed; output and errors are written all the same.",
    )

    def tolerates(self, num_errors: int, num_rows: int) -> bool:
        """Whether so many of the rows that were scored may be without a prediction."""
        if self.max_errors.endswith("%"):
            return num_errors <= float(self.max_errors[:-1]) / 100 * num_rows
        return num_errors <= int(self.max_errors)


class ReportOptions(Options):
    """What the report of a run may show."""

    report_rows: Annotated[int, Field(ge=0)] = option(
        100, "Rows that the run's report shows, with their tokens; 0 for none, as for data that must not leave."
    )
    page_rows: Annotated[int, Field(ge=0)] = option(
        0, "Of the report's rows, how many of the least sure the run's page in Prefect shows, with their tokens."
    )


class PublishOptions(Options):
    """Where a run's predictions are put besides, all at once."""

    publish: DeltaPlace | None = option(
        None,
        "A Delta table of the output's predictions, such as delta:s3://lake/predictions, which a run that ends well "
        "changes by one commit at its end. By default there is none.",
    )

    @property
    def table(self) -> str | None:
        """The path or URI of the Delta table."""
        return self.publish.removeprefix("delta:") if self.publish else None


class PlanOptions(OutputOptions, TargetOptions):
    """What a plan depends on: all of `classify` but how it is computed."""


class ClassifyOptions(RunnerOptions, ComputeOptions, ToleranceOptions, ReportOptions, PublishOptions, PlanOptions):
    """Score every row of a Parquet dataset and write predictions and attention weights as Parquet.

    Rerunning the same command is the recovery procedure: what is already scored is left as it is. An output that exists
    keeps the settings that it was made with; saying something else of it is refused.

    A scheduled start is in UTC; {scheduled-1d@Europe/Berlin:%Y-%m-%d} is the day before it in Berlin.
    """


class RangeOptions(Options):
    """Which partitions a backfill goes through, and how."""

    start: str | None = option(None, "First value, such as 2026-11-01. By default the range is open on this side.")
    end: str | None = option(
        None, "Last value, included: of a day, all of its hours. By default the range is open on this side."
    )
    partition: str = option("date", "Partition column of the range, or several that are one date: year,month,day.")
    where: list[Annotated[str, Field(pattern="^[^=]+=")]] = option(
        [], "Conditions on other partition columns, such as region=eu. All of them must hold."
    )
    newest_first: bool = option(False, "Begin with the last partition instead of the first.")
    parallel: Count = option(1, "Partitions at once.")
    fail_fast: bool = option(False, "Start no more partitions after one has failed.")
    dry_run: bool = option(False, "Only say what would be scored.")
    fan_out: str | None = option(
        None, "Deployment of classify, such as classify/partition, whose work pool's workers run the partitions."
    )


class BackfillOptions(
    RunnerOptions, OutputOptions, ToleranceOptions, ReportOptions, PublishOptions, RangeOptions, TargetOptions
):
    """Classify every partition of a range. One that fails does not stop the others; rerun to do what is missing.

    An output that exists keeps the settings that it was made with; saying something else of it is refused.

    In start and end, {scheduled-7d:%Y-%m-%d} is the day a week before the scheduled start of the run, in UTC.
    """

    source: Place = option(..., "Folder or URI with Hive partitions, such as date=2026-11-01.")
    output: Place = option(..., "Folder or URI for predictions, attention and manifests; the same for all partitions.")

    def partitions(self, at_start: Callable[[str], str]) -> tuple[Partition, ...]:
        """Those to go through, in order. at_start: puts in the scheduled start. Raises as `find_partitions`."""
        from flows.operations.runs import find_partitions

        start, end = (at_start(value) if value else None for value in (self.start, self.end))
        return find_partitions(
            self.source,
            self.output,
            self.partition,
            start,
            end,
            where=self.where,
            newest_first=self.newest_first,
        )


class RetrainOptions(Options):
    """Train on labelled Parquet and publish a checkpoint. It becomes champion if it is shown to be no worse.

    Running the same command again goes on with a training that was stopped, and trains nothing that is trained.
    """

    source: Place = option(..., "Parquet file, folder, glob or URI with labelled token sequences.")
    also: list[Place] = option([], "More places of labelled rows, such as corrections.")
    since: date | None = option(None, "First date of the rows that count, by their partition.")
    window: Annotated[str, Field(pattern=WINDOW_PATTERN)] | None = option(
        None, "How far back rows count from the newest date, such as 90d or 12w."
    )
    partition: str = option("date", "Partition column with the date, for since and window, or several: year,month,day.")
    registry: Place = option("registry", "Folder or URI of the checkpoint registry.")
    preset: PresetName = option(DEFAULT, "Sizes of the network and the settings to train it with.")
    attention: Attention = option("additive", "How hidden states are pooled over time.")
    num_embeddings: Annotated[int, Field(ge=2, le=MOST_EMBEDDINGS)] | None = option(
        None,
        "Token ids that the network knows, from 0 on, the last one for padding. Rows with other ids are left out. By "
        f"default {ModelConfig.num_embeddings}, or as many as the champion knows if these are more.",
    )
    tokens_column: str = option("tokens", "Column with the tokens: binary, string, or a list of integers.")
    label_column: str = option(
        "label", "Column with the class: strings, integers or bools. Rows without one are left out."
    )
    group_column: str = option(
        DEFAULT_GROUP, "Rows of one group stay on one side of the split. Rows without one are split by content."
    )
    min_class_rows: Count = option(1, "Classes with fewer rows than this to train on are left out, with their rows.")
    vanished_classes: VanishedClasses = option(
        "refuse", "What to do about classes of the champion that have no rows any more: refuse, or drop them."
    )
    class_weights: ClassWeights | None = option(
        None, 'Whether rare classes weigh as much as common ones ("balanced"). By default the preset says.'
    )
    warm_start: bool = option(False, "Go on from the champion's weights, if they fit, and not from scratch.")
    epochs: Count | None = option(
        None, "Most passes over the training rows. By default as many as the number of rows suggests."
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = option(
        None, "Highest learning rate. By default the preset's."
    )
    batch_rows: Count | None = option(None, "Rows of a training step. By default the preset's.")
    max_seconds: Annotated[float, Field(gt=0)] | None = option(
        None, "Time limit for training, in seconds. No limit by default."
    )
    seed: Annotated[int, Field(ge=0)] = option(
        0, "Seed of weights, order and dropout; the same seed gives the same weights on the same machine."
    )
    metric: Metric = option("accuracy", "What decides between the new checkpoint and the champion, on held-out rows.")
    margin: Annotated[float, Field(ge=0)] = option(
        PromotionRules().margin,
        "How much worse than the champion's the metric may be, at the lower end of its interval.",
    )


AnyOptions = TypeVar("AnyOptions", bound=Options)
Result = TypeVar("Result")


def takes(options: type[AnyOptions]) -> Callable[[Callable[[AnyOptions], Result]], Callable[..., Result]]:
    """A decorator: makes a function of one model of options a function of flat parameters, one for each option.

    Options without a default may be given by position, all others by name. The signature has their types and bounds.
    The docstring is that of the model and describes the options under `Args:`, from where Prefect's form and the
    command line take their help.
    Calling it raises pydantic's ValidationError on a bad value.
    """

    def decorate(function: Callable[[AnyOptions], Result]) -> Callable[..., Result]:
        kinds = get_type_hints(options, include_extras=True)
        signature = inspect.Signature(
            [_parameter(name, kinds[name], field) for name, field in options.model_fields.items()],
            return_annotation=get_type_hints(function).get("return", Any),
        )

        @functools.wraps(function)
        def flat(*args: Any, **given: Any) -> Result:
            return function(options(**signature.bind(*args, **given).arguments))

        lines = [f"    {name}: {field.description}" for name, field in options.model_fields.items()]
        flat.__doc__ = "\n".join([f"{inspect.getdoc(options) or ''}\n\nArgs:", *lines])
        flat.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
        flat.__annotations__["return"] = signature.return_annotation
        flat.__signature__ = signature  # type: ignore[attr-defined]
        return flat

    return decorate


def as_flow(
    options: type[AnyOptions], *, run_name: Callable[[], str]
) -> Callable[[Callable[[AnyOptions], Result]], "Flow[..., Result]"]:
    """A decorator: makes a function of one model of options a Prefect flow, whose parameters are flat as in `takes`.

    The flow is named like the function, and described by the docstring of the model.
    """
    from prefect import flow

    def decorate(function: Callable[[AnyOptions], Result]) -> "Flow[..., Result]":
        paragraphs = (inspect.getdoc(options) or "").split("\n\n")
        description = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)  # lines are not folded there
        as_prefect = flow(name=function.__name__, flow_run_name=run_name, description=description)
        made: Flow[..., Result] = as_prefect(takes(options)(function))
        return made

    return decorate


def _parameter(name: str, kind: Any, field: FieldInfo) -> inspect.Parameter:
    if field.is_required():
        return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.get_default(), annotation=kind)
