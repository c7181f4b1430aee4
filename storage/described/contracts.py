"""An output as other tools take it: an Open Data Contract (ODCS 3.1) and dbt's sources, ready for YAML.

https://bitol-io.github.io/open-data-contract-standard/v3.1.0/ and https://docs.getdbt.com/reference/source-properties
"""

import re
import uuid
from typing import Any

from storage.described.columns import Part
from storage.described.outputs import DescribedOutput, OutputColumn

_WHAT: dict[Part, str] = {
    "predictions": "One row for each row of the input, in its order: the class that it was taken for, or an error.",
    "attention": "The rows of the predictions under the same names of files, with the attention weights of tokens.",
}
_USAGE = "The name of a file below the folder, together with row, identifies a row; ids need not be unique."
_SHARES = {"score", "probabilities", "weights"}


def open_data_contract(output: DescribedOutput) -> dict[str, Any]:
    """By the Open Data Contract Standard, version 3.1. Same output, same content."""
    return {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"attnlstm:{output.address}")),
        "name": output.name,
        "version": f"{output.format_version}.0.0",
        "status": "active",
        "description": {"purpose": "Classes of token sequences, with probabilities and attention.", "usage": _USAGE},
        "servers": [_server(output, part) for part in output.parts],
        "schema": [
            {
                "name": part,
                "logicalType": "object",
                "physicalType": "parquet",
                "physicalName": f"{part}/**/*.parquet",
                "description": _WHAT[part],
                "properties": _properties(columns),
            }
            for part, columns in output.parts.items()
        ],
        "customProperties": [{"property": "classes", "value": list(output.classes)}],
    }


def dbt_sources(output: DescribedOutput) -> dict[str, Any]:
    """dbt's `sources.yml`; `external_location` is what dbt-duckdb reads."""
    return {
        "version": 2,
        "sources": [
            {
                "name": re.sub(r"\W+", "_", output.name, flags=re.ASCII).strip("_").lower() or "output",
                "description": f"Classes of token sequences, by attnlstm. {_USAGE}",
                "meta": {"classes": list(output.classes)},
                "tables": [
                    {
                        "name": part,
                        "description": _WHAT[part],
                        "config": {"external_location": _read_parquet(output, part)},
                        "columns": [
                            {"name": column.name, "description": column.comment, "data_type": column.sql_type}
                            | ({"data_tests": ["not_null"]} if column.is_required else {})
                            for column in columns
                        ],
                    }
                    for part, columns in output.parts.items()
                ],
            }
        ],
    }


def _server(output: DescribedOutput, part: Part) -> dict[str, Any]:
    place = f"{output.address.rstrip('/')}/{part}/**/*.parquet"
    if output.address.startswith("s3://"):
        return {"server": part, "type": "s3", "location": place, "format": "parquet"}
    if "://" in output.address:
        return {"server": part, "type": "custom", "customProperties": [{"property": "location", "value": place}]}
    return {"server": part, "type": "local", "path": place, "format": "parquet"}


def _properties(columns: tuple[OutputColumn, ...]) -> list[dict[str, Any]]:
    partitions = [column.name for column in columns if column.is_partition]
    found = []
    for column in columns:
        one = {
            "name": column.name,
            "logicalType": column.logical_type,
            "physicalType": column.sql_type,
            "description": column.comment,
            "required": column.is_required,
        }
        if column.logical_type == "array":
            item = OutputColumn("", column.type.value_type, "")
            one["items"] = {"logicalType": item.logical_type, "physicalType": item.sql_type}
        if column.name in _SHARES:
            limits: Any = one["items"] if column.logical_type == "array" else one
            limits["logicalTypeOptions"] = {"minimum": 0, "maximum": 1}
        if column.is_partition:
            one |= {"partitioned": True, "partitionKeyPosition": partitions.index(column.name) + 1}
        found.append(one)
    return found


def _read_parquet(output: DescribedOutput, part: Part) -> str:
    # dbt-duckdb fills in braces.
    place = f"{output.address.rstrip('/')}/{part}/**/*.parquet".replace("'", "''").replace("{", "{{").replace("}", "}}")
    return f"read_parquet('{place}', hive_partitioning = {'true' if output.partitions else 'false'})"
