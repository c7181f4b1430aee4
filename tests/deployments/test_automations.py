"""deployments/automations.yaml: nothing in it is ignored, it is applied once only, and it does what it says."""

import re
import runpy
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.events import DeploymentEventTrigger, emit_event
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.flows import flow
from prefect.settings.models.flows import FlowsSettings
from prefect.states import Failed, Running

from builders import make_manifest
from flows.operations.runs import WrittenPartition
from flows.orchestration.events import emit_partitions, tags_of_parent
from servers import wait_until

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
APPLY = DEPLOYMENTS / "apply_automations.py"
_PATIENCE_S = 60


def _automations() -> dict[str, dict[str, Any]]:
    read = yaml.safe_load((DEPLOYMENTS / "automations.yaml").read_text(encoding="utf-8"))
    return {automation["name"]: automation for automation in read["automations"]}


def _as_prefect_has_it(given: dict[str, Any]) -> AutomationCore:
    actions = [
        action | ({"block_document_id": str(uuid4())} if action["type"] == "send-notification" else {})
        for action in given["actions"]
    ]
    return AutomationCore.model_validate(given | {"actions": actions})


def _keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _keys(inner) for key, inner in value.items()}
    return [_keys(inner) for inner in value] if isinstance(value, list) and value and isinstance(value[0], dict) else ""


@pytest.fixture(params=_automations())
def given(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _automations()[request.param]


def test_automation_has_no_key_that_prefect_would_pass_over_in_silence(given: dict[str, Any]) -> None:
    kept = _as_prefect_has_it(given).model_dump(mode="json", exclude_unset=True)
    for action in kept["actions"]:
        action.pop("block_document_id", None)

    assert _keys(given) == _keys(kept)


def test_a_run_may_miss_two_signs_of_life_and_a_deployed_one_gives_them_more_often() -> None:
    automations = _automations()
    pool = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text(encoding="utf-8"))["definitions"]["pool"]
    deployed_every = int(pool["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    others_every = FlowsSettings.model_fields["heartbeat_frequency"].default

    assert automations["attnlstm-crash-silent-deployed-runs"]["trigger"]["within"] > 3 * deployed_every
    assert automations["attnlstm-crash-silent-runs"]["trigger"]["within"] > 3 * others_every


def _apply(*words: str) -> str:
    """What the script prints. In this process, which has Prefect imported."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr("sys.argv", [str(APPLY), *words])
        runpy.run_path(str(APPLY), run_name="__main__")
    return printed.getvalue()


@pytest.fixture(scope="module")
def webhook(prefect_server: str) -> Iterator[list[str]]:
    """What arrives where the notification block custom-webhook/on-call sends to."""
    arrived: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrived.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{receiver.server_port}/"
        block = CustomWebhookNotificationBlock(name="on-call", url=url, json_data={"text": "{{subject}}: {{body}}"})
        block.save("on-call")
        yield arrived
        receiver.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def applied(prefect_server: str, webhook: list[str]) -> Iterator[list[str]]:
    """The automations, applied without a block, then with one, then once more with one of them paused by hand."""
    done = [_apply(), _apply("--notify", "custom-webhook/on-call")]
    with get_client(sync_client=True) as client:
        (late,) = client.read_automations_by_name("attnlstm-notify-late")
        client.pause_automation(late.id)
        done.append(_apply("--notify", "custom-webhook/on-call"))
        yield done
        for name in _automations():
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)


@pytest.mark.slow
def test_applying_twice_leaves_one_of_each_and_paused_ones_paused(
    applied: list[str],
) -> None:
    first, second, third = applied
    assert "attnlstm-crash-silent-runs: created\n" in first
    assert "attnlstm-notify-failed: left out, since --notify names no block\n" in first
    assert "attnlstm-crash-silent-runs: updated\n" in second
    assert "attnlstm-notify-failed: created\n" in second
    assert third.count(": updated\n") == len(_automations())
    with get_client(sync_client=True) as client:
        found = {name: client.read_automations_by_name(name) for name in _automations()}
    enabled = {name: [automation.enabled for automation in automations] for name, automations in found.items()}
    assert enabled == {name: [name != "attnlstm-notify-late"] for name in _automations()}


@pytest.mark.slow
def test_a_block_that_is_not_there_is_named(prefect_server: str) -> None:
    with pytest.raises(SystemExit, match=r"^There is no block slack-webhook/nobody\. Create it on Prefect's page"):
        _apply("--notify", "slack-webhook/nobody")


@flow
def never_called() -> None:
    """A flow for runs that are only talked about."""


def _name(client: SyncPrefectClient, run: FlowRun) -> str | None:
    state = client.read_flow_run(run.id).state
    return state and state.name


@pytest.mark.slow
def test_a_run_that_falls_silent_is_crashed_and_that_is_said(applied: list[str], webhook: list[str]) -> None:
    given = _automations()["attnlstm-crash-silent-deployed-runs"]
    # Ten seconds are the least there may be, and too few for runs of other tests on a busy machine.
    of_ours = given["trigger"]["match_related"] | {"prefect.resource.id": "prefect.tag.hurried"}
    given |= {"name": "hurried", "trigger": given["trigger"] | {"within": 10, "match_related": of_ours}}
    with get_client(sync_client=True) as client:
        hurried = client.create_automation(_as_prefect_has_it(given))
        silent, ended = (
            client.create_flow_run(never_called, state=Running(), tags=["attnlstm", "hurried"]) for _ in range(2)
        )
        of_others = client.create_flow_run(never_called, state=Running(), tags=["attnlstm"])
        for run in (of_others, silent, ended):
            emit_event(
                "prefect.flow-run.heartbeat",
                resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"},
                related=[
                    {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in run.tags
                ],
            )
        client.set_flow_run_state(ended.id, Failed(message="a file can't be read"))
        try:
            wait_until(lambda: _name(client, silent) == "Crashed", _PATIENCE_S)
            wait_until(lambda: len(webhook) >= 2, _PATIENCE_S)
            assert _name(client, ended) == "Failed"
            assert _name(client, of_others) == "Running"
        finally:
            client.delete_automation(hurried)

    message = given["actions"][0]["message"]
    assert any(f"{silent.name}: Crashed: {message}" in text for text in webhook), webhook
    assert any(f"{ended.name}: Failed: a file can't be read" in text for text in webhook), webhook


def _write(output: str, *tags: str, day: int, is_newest: bool) -> None:
    """Tell of a partition as a run with these tags does."""
    written = WrittenPartition(f"date=2026-11-{day:02d}", 13, 7, "", is_newest)
    token = tags_of_parent.set(tags)
    emit_partitions(make_manifest(output=output), [written])
    tags_of_parent.reset(token)


@pytest.mark.slow
def test_an_output_to_which_nothing_newer_is_written_is_told_of_though_old_days_are(
    applied: list[str], webhook: list[str]
) -> None:
    behind, fresh, of_nobody = (f"/{uuid4()}" for _ in range(3))
    with get_client(sync_client=True) as client:
        (real,) = client.read_automations_by_name("attnlstm-notify-nothing-newer")
        assert isinstance(real.trigger, EventTrigger)
        trigger = real.trigger.model_copy(update={"within": timedelta(seconds=10)})
        hurried = client.create_automation(
            AutomationCore(name="hurried-freshness", trigger=trigger, actions=real.actions)
        )
        try:
            for output, tags in ((behind, ["attnlstm"]), (fresh, ["attnlstm"]), (of_nobody, [])):
                _write(output, *tags, day=2, is_newest=True)

            def is_told() -> bool:
                _write(behind, "attnlstm", day=1, is_newest=False)
                _write(fresh, "attnlstm", day=3, is_newest=True)
                time.sleep(1)
                return any(behind in text for text in webhook)

            wait_until(is_told, _PATIENCE_S)
        finally:
            client.delete_automation(hurried)

    (told,) = [text for text in webhook if behind in text]
    assert "Nothing newer than date=2026-11-02 for 26 hours" in told
    assert [text for text in webhook if fresh in text or of_nobody in text] == []


@pytest.mark.slow
def test_the_trigger_of_the_readme_starts_another_deployment_with_the_partition_that_was_written(
    prefect_server: str,
) -> None:
    shown = re.search(r"```yaml\n(triggers:.*?)```", (DEPLOYMENTS / "README.md").read_text("utf-8"), re.DOTALL)
    assert shown is not None
    (given,) = yaml.safe_load(shown[1])["triggers"]
    output = f"/{uuid4()}"
    given["match"]["prefect.resource.id"] = f"attnlstm.output.{output}"
    trigger = DeploymentEventTrigger.model_validate(given)
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(never_called), name="neighbour")
        trigger.set_deployment_id(deployment)
        automation = client.create_automation(trigger.as_automation())
        try:
            wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
            _write(output, day=2, is_newest=True)
            wait_until(lambda: bool(client.read_flow_runs(deployment_filter=wanted)), _PATIENCE_S)
            (run,) = client.read_flow_runs(deployment_filter=wanted)
        finally:
            client.delete_automation(automation)
            client.delete_deployment(deployment)
    assert run.parameters == {"partition": "date=2026-11-02"}
