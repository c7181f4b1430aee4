"""deployments/server.env: every line is a setting of Prefect's server, and none is a secret."""

import importlib
import os
import subprocess
from pathlib import Path

import pytest
from prefect.server.concurrency.lease_storage import ConcurrencyLeaseStorage
from prefect.settings import Settings

SERVER_ENV = Path(__file__).resolve().parents[2] / "deployments" / "server.env"


@pytest.fixture
def loaded() -> dict[str, str]:
    """What a shell makes of the file, by the command in it."""
    done = subprocess.run(
        ["sh", "-euc", 'set -a; . "$0"; set +a; env', str(SERVER_ENV)],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return {name: value for name, value in variables.items() if name not in ("PATH", "PWD", "OLDPWD", "SHLVL", "_")}


@pytest.fixture
def settings(loaded: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    for name, value in loaded.items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_every_line_sets_a_setting_of_the_server(loaded: dict[str, str], settings: Settings) -> None:
    # Prefect passes over what it does not know.
    arrived = settings.to_environment_variables(exclude_unset=True)

    assert len(loaded) > 5
    assert set(loaded) <= set(arrived)
    assert all(name.startswith("PREFECT_SERVER_") for name in loaded)


def test_places_under_limits_are_kept_on_disk(settings: Settings) -> None:
    module = importlib.import_module(settings.server.concurrency.lease_storage)

    assert issubclass(module.ConcurrencyLeaseStorage, ConcurrencyLeaseStorage)
    assert not module.__name__.endswith(".memory")


def test_nothing_in_it_is_a_secret(settings: Settings) -> None:
    assert "**" not in str(settings.to_environment_variables(exclude_unset=True, include_secrets=False))
