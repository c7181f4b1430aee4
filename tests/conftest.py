"""What the tests share: an environment of their own, one Prefect server, one S3 server, the small real datasets, and a
registry whose network takes its time.

Imports neither torch nor Prefect nor the packages under test until a test asks.
"""

import atexit
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

# Prefect reads its settings when it is first imported, and test modules import it while they are collected: so
# this happens here, at import. A developer's own server, profile and database stay out of the tests, and subprocesses
# inherit all of it.
for _name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[_name]
_prefect_home = tempfile.mkdtemp(prefix="attnlstm-tests-")
atexit.register(shutil.rmtree, _prefect_home, ignore_errors=True)
os.environ.update(
    PREFECT_HOME=_prefect_home,
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",  # the default of 20 is short on a busy machine
    DO_NOT_TRACK="1",
    OMP_NUM_THREADS="1",  # torch's threads: sums in one order, and no contest for cores
)

# A busy machine is not a failing test, and what passed once must pass again.
settings.register_profile("attnlstm", deadline=None, derandomize=True)
settings.load_profile("attnlstm")


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """A Prefect server with an empty database, for this process; the value is its URL, for subprocesses."""
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        url = get_current_settings().api.url
        assert url is not None
        yield str(url)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The host and port of an S3 server of moto. AWS's variables name its credentials, for subprocesses as well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # A process of its own: Arrow's calls that keep Python's lock would wait for a server in this one for ever.
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while server.poll() is None and time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            else:
                pytest.fail("moto's server did not start: .venv/bin/python -m moto.server says why")
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


_buckets = itertools.count()


@pytest.fixture
def s3(s3_server: str) -> Callable[[str], str]:
    """s3(path): the URI of a path in a bucket of the test's own, which is there and empty."""
    import pyarrow.fs as pafs

    bucket = f"test-{next(_buckets)}"
    query = f"endpoint_override={s3_server}&scheme=http&region=us-east-1"
    pafs.FileSystem.from_uri(f"s3://{bucket}?{query}&allow_bucket_creation=true")[0].create_dir(bucket)
    return lambda path: f"s3://{bucket}/{path}?{query}"


@pytest.fixture(scope="session")
def slow_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry whose champion has hidden states so wide that a few hundred rows take some seconds. Read only."""
    import torch

    from attnlstm.checkpoint import to_files
    from attnlstm.config import ModelConfig
    from attnlstm.network import AttentionLSTM
    from storage.registry.checkpoints import Registry

    torch.manual_seed(3)
    network = AttentionLSTM(ModelConfig(hidden_size=64, classes=("x", "y", "z")))
    folder = tmp_path_factory.mktemp("slow") / "registry"
    registry = Registry.open(str(folder))
    registry.promote(registry.publish(to_files(network), {"test": {}}, "").version, "for the test")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the small real datasets: ATTNLSTM_TEST_DATA, else shared/data beside the repository."""
    folder = Path(os.environ.get("ATTNLSTM_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no datasets in {folder}; ATTNLSTM_TEST_DATA names another folder")
    return folder
