"""What Prefect's form and the command line say of a parameter: one text each, the same in both."""

from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows.backfill import backfill
from flows.classify import classify
from flows.cli import app as cli
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


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_description_of_a_flow_is_prose_without_the_help_of_its_parameters(name: str) -> None:
    description = str(FLOWS[name].description)

    assert description.endswith(".")
    assert "Args:" not in description
    assert [paragraph for paragraph in description.split("\n\n") if "\n" in paragraph] == []


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_form_asks_for_places_first_and_has_a_default_for_all_else(name: str) -> None:
    schema = parameter_schema(FLOWS[name]).model_dump()
    ordered = sorted(schema["properties"], key=lambda key: int(schema["properties"][key]["position"]))

    assert schema["required"] == ordered[: len(schema["required"])]
    assert schema["required"] == (["source"] if name == "retrain" else ["source", "output"])


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_every_parameter_has_a_kind_that_the_form_can_show(name: str) -> None:
    """A type that Prefect can't put into a schema becomes one without a kind, which the form shows as JSON."""
    for key, value in _properties(name).items():
        for kind in value.get("anyOf", [value]):
            assert "type" in kind, key


def test_form_knows_bounds_and_choices() -> None:
    form = _properties("classify")

    assert form["mode"]["enum"] == ["missing", "stale", "all"]
    assert form["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert form["workers"]["anyOf"][0]["minimum"] == 1
    assert form["save_attention"]["pattern"]
    assert _properties("retrain")["attention"]["enum"] == ["additive", "multihead"]
    assert _properties("backfill")["parallel"]["minimum"] == 1
    assert _properties("backfill")["where"]["items"]["pattern"]
    assert _properties("retrain")["since"]["anyOf"][0]["format"] == "date"
