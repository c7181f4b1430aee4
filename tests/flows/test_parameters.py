"""An option is defined once: what Prefect's form, the command line, a plan and an output's record make of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows.backfill import backfill
from flows.classify import classify
from flows.cli import app as cli
from flows.cli import outputs
from flows.retrain import retrain
from flows.settings import ClassifyOptions, OutputOptions, as_flow, recorded, takes
from storage.errors import OutputError

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

    assert form["mode"]["enum"] == ["missing", "stale", "errors", "all"]
    assert form["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert form["workers"]["anyOf"][0]["minimum"] == 1
    assert form["save_attention"]["anyOf"][0]["pattern"]
    assert _properties("retrain")["attention"]["enum"] == ["additive", "multihead"]
    assert _properties("backfill")["parallel"]["minimum"] == 1
    assert _properties("backfill")["where"]["items"]["pattern"]
    assert _properties("retrain")["since"]["anyOf"][0]["format"] == "date"


class _MoreOutput(OutputOptions):
    """An option that no output has yet."""

    blank: str | None = recorded("space", "What stands between words.")


class _MoreClassify(_MoreOutput, ClassifyOptions):
    pass


class _MorePlan(_MoreOutput, outputs.PlanCommandOptions):
    pass


def test_option_that_is_added_reaches_form_help_plan_and_record(
    dataset: Path,
    untrained: dict[str, Path],
    tmp_path: Path,
    prefect_server: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    help_text = 'What stands between words. By default as in the output, and "space" in a new one.'
    more = as_flow(_MoreClassify, run_name=lambda: "more")(classify.fn.__wrapped__)  # type: ignore[attr-defined]
    plan = takes(_MorePlan)(outputs.plan.__wrapped__)  # type: ignore[attr-defined]
    places = [str(dataset), str(tmp_path / "output")]

    assert parameter_schema(more).model_dump()["properties"]["blank"]["description"] == help_text
    app = App(result_action="return_value", exit_on_error=False)
    app.command(plan, name="plan")
    app(["plan", "--help"])
    assert "--blank" in capsys.readouterr().out

    state: Any = more(*places, checkpoint=str(untrained["additive"]), blank="dot", return_state=True)
    assert state.is_completed(), state.message
    assert json.loads((tmp_path / "output/_dataset.json").read_text())["blank"] == "dot"

    asked = ["plan", *places, "--checkpoint", str(untrained["additive"])]
    assert app(asked) == app([*asked, "--blank", "dot"]) == 0
    with pytest.raises(OutputError, match="blank: 'dot' there, 'space' asked for"):
        app([*asked, "--blank", "space"])


def test_every_command_takes_what_an_output_records_and_refuses_what_differs(
    dataset: Path, untrained: dict[str, Path], tmp_path: Path, prefect_server: str
) -> None:
    output = tmp_path / "output"
    options: dict[str, Any] = {"checkpoint": str(untrained["additive"]), "return_state": True}
    first: Any = backfill(
        str(dataset), str(output), start="2026-11-05", keep=["origin"], label_column="label", **options
    )
    assert first.is_completed(), first.message

    assert classify(str(dataset), str(output), **options).is_completed()
    record = json.loads((output / "_dataset.json").read_text())
    assert (record["keep"], record["label_column"]) == (["origin", "label"], "label")
    refusals = {
        "keep: ['origin', 'label'] there, ['number', 'label'] asked for": {"keep": ["number"]},
        "label_column: 'label' there, 'origin' asked for": {"label_column": "origin"},
    }
    for message, said in refusals.items():
        for flow in (classify, backfill):
            refused: Any = flow(str(dataset), str(output), **said, **options)
            assert refused.is_failed()
            assert message in str(refused.result(raise_on_failure=False))
        with pytest.raises(OutputError) as error:
            outputs.plan(str(dataset), str(output), checkpoint=str(untrained["additive"]), **said)
        assert message in str(error.value)
