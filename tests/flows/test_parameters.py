"""What Prefect's form and the command line say of a parameter: one text each, the same in both."""

from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows import cli
from flows.backfill import backfill
from flows.classify import classify
from flows.retrain import retrain

FLOWS: dict[str, Flow[..., Any]] = {"classify": classify, "backfill": backfill, "retrain": retrain}


def _properties(name: str) -> dict[str, Any]:
    return dict(parameter_schema(FLOWS[name]).model_dump()["properties"])


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_every_parameter_has_a_description_that_is_a_sentence(name: str) -> None:
    descriptions = {key: value.get("description", "") for key, value in _properties(name).items()}

    assert [key for key, text in descriptions.items() if not text.endswith(".") or "\n" in text] == []


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_command_line_and_form_describe_the_same_parameters_alike(name: str) -> None:
    command = cli.app[name]
    arguments = {
        argument.field_info.name: argument.parameter.help
        for argument in command.assemble_argument_collection(parse_docstring=True)
    }

    assert arguments == {key: value["description"] for key, value in _properties(name).items()}


def test_form_knows_bounds_and_choices() -> None:
    form = _properties("classify")

    assert form["mode"]["enum"] == ["missing", "stale", "all"]
    assert form["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert form["workers"]["anyOf"][0]["minimum"] == 1
    assert form["save_attention"]["pattern"]
    assert _properties("retrain")["attention"]["enum"] == ["additive", "multihead"]
    assert _properties("backfill")["parallel"]["minimum"] == 1
