"""Keeping credentials out of what Prefect stores: parameters of a run are on its page for everybody to read.

Owns the type of parameters that name a place, and what happens to a run that was given credentials in one. Object
stores take their credentials from the environment, which a work pool's job template can fill from Prefect's secret
blocks; nothing here knows them. Prefect is imported late, for commands that ask without it.
"""

from collections.abc import Mapping
from typing import Any

from storage.errors import StorageError
from storage.locations import holds_credentials, without_credentials


class CredentialsError(StorageError):
    """A parameter holds credentials. The message does not."""


def refuse_credentials(parameters: Mapping[str, Any]) -> None:
    """Raises CredentialsError if a parameter of a run, by name, is a URI with credentials, or a list with one."""
    for name, value in parameters.items():
        for place in value if isinstance(value, list | tuple) else [value]:
            if isinstance(place, str) and holds_credentials(place):
                raise CredentialsError(
                    f"{name} is {without_credentials(place)} with credentials in it. Prefect would store them and show "
                    "them to whoever can see the run. Leave them out, and give them in the environment "
                    "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ...), as a role of the machine, or as "
                    "secret blocks in the work pool's job template."
                )


def refuse_stored_credentials() -> None:
    """`refuse_credentials` of the flow run that calls it, whose parameters Prefect has stored: they go from there too.

    Raises CredentialsError, and the credentials should be replaced, since databases and backups forget slowly.
    """
    from prefect import get_client
    from prefect.runtime import flow_run

    parameters = flow_run.parameters
    try:
        refuse_credentials(parameters)
    except CredentialsError as error:
        with get_client(sync_client=True) as client:
            client.update_flow_run(
                flow_run.id, parameters={name: _cleaned(value) for name, value in parameters.items()}
            )
        raise CredentialsError(
            f"{error} They were stored with this run and are removed from it; replace them."
        ) from None


def _cleaned(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_cleaned(each) for each in value]
    return without_credentials(value) if isinstance(value, str) and holds_credentials(value) else value
