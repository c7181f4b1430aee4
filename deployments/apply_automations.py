"""Put the automations of automations.yaml on the Prefect server: create them, or update those of the same names.

    python deployments/apply_automations.py [--notify TYPE/NAME]

`prefect automation create --from-file` would make a second set of them each time, and has no names for blocks
(PrefectHQ/prefect#18918). Knows nothing about what an automation does.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

FILE = Path(__file__).with_name("automations.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--notify",
        metavar="TYPE/NAME",
        help="notification block, such as slack-webhook/on-call; without it, automations that notify are left out",
    )
    arguments = parser.parse_args()
    with get_client(sync_client=True) as client:
        block = _block_id(client, arguments.notify) if arguments.notify else None
        for given in yaml.safe_load(FILE.read_text(encoding="utf-8"))["automations"]:
            print(f"{given['name']}: {_apply(client, given, block)}")


def _apply(client: SyncPrefectClient, given: dict[str, Any], block: str | None) -> str:
    notifications = [action for action in given["actions"] if action["type"] == "send-notification"]
    if notifications and block is None:
        return "left out, since --notify names no block"
    for action in notifications:
        action["block_document_id"] = block
    automation = AutomationCore.model_validate(given)
    existing = client.read_automations_by_name(automation.name)
    if not existing:
        client.create_automation(automation)
        return "created"
    # Whoever has paused it by hand wants it so.
    client.update_automation(existing[0].id, automation.model_copy(update={"enabled": existing[0].enabled}))
    return "updated"


def _block_id(client: SyncPrefectClient, notify: str) -> str:
    block_type, _, name = notify.partition("/")
    if not name:
        raise SystemExit(f"--notify {notify} names no block. Write it as TYPE/NAME, such as slack-webhook/on-call.")
    try:
        return str(client.read_block_document_by_name(name, block_type).id)
    except ObjectNotFound:
        raise SystemExit(f"There is no block {notify}. Create it on Prefect's page, under Blocks.") from None


if __name__ == "__main__":
    main()
