"""Notifications of the dashboard's runs: Prefect's automations and blocks, made for the addresses of `--notify`.

An address is `mailto://…` or `mailtos://…` (a mail server, as apprise writes it), a Slack webhook, or any other web address,
which gets the subject and text as JSON. Told are runs that finished, failed or crashed, and stages that wait for an approval.
Run as `python -m flows.server.notifications ORIGIN` with the addresses in OLMO2_NOTIFY, one a line: they may hold secrets.
"""

import os
import sys
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit
from uuid import UUID

from prefect.automations import AutomationCore
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.notifications import AppriseNotificationBlock, CustomWebhookNotificationBlock, SlackWebhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from pydantic import SecretStr

_NOTIFY = "OLMO2_NOTIFY"
MAIL = ("mailto", "mailtos")
SLACK = "hooks.slack.com"
OURS = "olmo2 notification"
"""How the names of our automations begin; others are not touched."""
_MOST = 20
"""Addresses: more are a mistake."""
_ENDS = {
    "prefect.flow-run.Completed",
    "prefect.flow-run.Failed",
    "prefect.flow-run.Crashed",
    "prefect.flow-run.TimedOut",
}
FLOWS = ["recipe", "stage", "microanneal-sweep", "comparison", "export", "adoption", "grid"]
"""Flows of prefect.yaml that have no phase of the same name; `evaluation` is told by its deployment."""


class Mail(AppriseNotificationBlock):
    """Mail through a server of your own."""

    _block_type_name = "Mail"
    _block_type_slug = "olmo2-mail"


def check_addresses(addresses: list[str]) -> list[str]:
    """The addresses. Raises ValueError, which repeats no secret, for one that is none."""
    if len(addresses) > _MOST:
        raise ValueError(f"--notify names {len(addresses)} addresses; at most {_MOST}")
    for place, given in enumerate(addresses, 1):
        parts = urlsplit(given)
        if parts.scheme not in (*MAIL, "http", "https") or not parts.hostname:
            raise ValueError(
                f"address {place} of --notify begins with {parts.scheme[:20] or 'no scheme'}; give "
                "mailtos://USER:PASSWORD@HOST?to=NAME@HOST, a Slack webhook, or another http(s) address that takes JSON"
            )
    return addresses


def block_for(given: str) -> NotificationBlock:
    """How an address is told."""
    parts = urlsplit(given)
    if parts.scheme in MAIL:
        return Mail(url=SecretStr(given))
    if parts.hostname == SLACK:
        return SlackWebhook(url=SecretStr(given))
    said = {"subject": "{{subject}}", "text": "{{subject}}\n{{body}}"}
    return CustomWebhookNotificationBlock(name="olmo2", url=given, json_data=said, headers=None, cookies=None)


def triggers() -> dict[str, EventTrigger]:
    """What is told, by a name."""
    flows = {"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}
    evaluation = {"prefect.resource.role": "deployment", "prefect.resource.name": "evaluation"}
    approval = {"prefect.resource.role": "flow", "prefect.resource.name": "approval"}
    return {
        "runs": _trigger(_ENDS, flows),
        "evaluations": _trigger(_ENDS, evaluation),
        "approvals": _trigger({"prefect.flow-run.Paused"}, approval),
    }


def _trigger(expect: set[str], related: Mapping[str, str | list[str]]) -> EventTrigger:
    return EventTrigger(
        expect=expect,
        match=ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification.model_validate(related),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )


def set_up(origin: str, addresses: list[str]) -> None:
    """Make the automations of these addresses on the server, in place of those of earlier calls."""
    with get_client(sync_client=True) as client:
        # Removed first, since an address that was left out must hear no more.
        _remove_ours(client)
        for place, given in enumerate(addresses, 1):
            # A block holds the address, and the automation only names it.
            block = cast(UUID, block_for(given).save(f"olmo2-notify-{place}", overwrite=True))
            for name, trigger in triggers().items():
                text = "waits for your approval" if name == "approvals" else "{{ flow_run.state.name | lower }}"
                action = SendNotification(
                    block_document_id=block,
                    subject=f"olmo2: {{{{ flow_run.name }}}} {text}",
                    body=f"{{{{ flow_run.state.message or '' }}}}\n{origin}/runs/flow-run/{{{{ flow_run.id }}}}",
                )
                client.create_automation(
                    AutomationCore(name=f"{OURS} {place} {name}", trigger=trigger, actions=[action])
                )


def _remove_ours(client: SyncPrefectClient) -> None:
    # By number and name, since the server finds automations by exact names only.
    for place in range(1, _MOST + 1):
        for name in triggers():
            for found in client.read_automations_by_name(f"{OURS} {place} {name}"):
                client.delete_automation(found.id)


def main() -> None:
    """Entry point of the process that `olmo2 dashboard` starts once its server answers."""
    set_up(sys.argv[1], check_addresses(os.environ[_NOTIFY].splitlines()))


if __name__ == "__main__":
    main()
