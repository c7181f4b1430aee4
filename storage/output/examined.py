"""An input beside its output, as the commands that look at both begin: from footers alone.

Owns which settings an output is looked at with. Knows nothing about what is looked for.
"""

import os
from dataclasses import dataclass

from storage.errors import OutputError
from storage.input.shards import ShardPlan, plan_shards
from storage.input.sources import Source, find_source
from storage.locations import Location
from storage.output.layout import Output, OutputSettings


@dataclass(frozen=True)
class Examined:
    """An input and its output. is_pattern: the input was named by a glob."""

    source: Source
    output: Output
    plan: ShardPlan
    is_pattern: bool


def examine(source: str, output: Output) -> Examined:
    """Find the input and plan its shards. Raises OutputError if the output was made otherwise, or from another."""
    found = find_source(source)
    output.check(str(found.root))
    address = source.partition("?")[0] if "://" in source else source
    is_pattern = any(wildcard in address for wildcard in "*?[") and not os.path.exists(source)
    return Examined(found, output, plan_shards(found, output.settings.columns, output.settings.limits), is_pattern)


def existing_output(output: str) -> Output:
    """The output at a path or URI, with the settings it was made with. Raises OutputError if there is none."""
    place = Location.parse(output)
    recorded = Output.recorded_settings(place)
    if not recorded:
        raise OutputError(f"{place} is no output of attnlstm: it has no _dataset.json. Check the path.")
    return Output(place, OutputSettings.from_record(recorded))
