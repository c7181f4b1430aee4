"""What the tests share: an environment of their own, one Prefect server, one S3 server, the small real datasets, and a
registry whose network takes its time.

Imports neither torch nor Prefect nor the packages under test until a test asks.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

from servers import drain_prefect, end_shared_servers, shared_server

REPOSITORY = Path(__file__).resolve().parents[1]

# A run of the tests is one process, or (with pytest-xdist) one that hands the tests out and others that run them side
# by side. They share a folder, where the first to need a server starts it for all. The others inherit the variables.
_is_owner = "PYTEST_XDIST_WORKER" not in os.environ
if _is_owner:
    os.environ["ATTNLSTM_TEST_RUN"] = tempfile.mkdtemp(prefix="attnlstm-tests-")
    os.environ["ATTNLSTM_TEST_OWNER"] = str(os.getpid())
RUN, OWNER = Path(os.environ["ATTNLSTM_TEST_RUN"]), int(os.environ["ATTNLSTM_TEST_OWNER"])

# Prefect reads its settings when it is first imported, and test modules import it while they are collected: so
# this happens here, at import. A developer's own server, profile and database stay out of the tests, and subprocesses
# inherit all of it.
for _name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[_name]
os.environ.update(
    PREFECT_HOME=str(RUN / f"home-{os.getpid()}"),
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",  # the default of 20 is short on a busy machine
    DO_NOT_TRACK="1",
    COLUMNS="200",  # no path is cut, however long the tests' folders are
    OMP_NUM_THREADS="1",  # torch's threads: sums in one order, and no contest for cores
)

# A busy machine is not a failing test, and what passed once must pass again.
settings.register_profile("attnlstm", deadline=None, derandomize=True)
settings.load_profile("attnlstm")
# Hypothesis would also draw the constants in those of our modules that happen to be imported so far: other ones in
# another order of tests, and more of them in the middle of a test that imports something.
providers.is_local_module_file = lambda path: False


def pytest_unconfigure() -> None:
    """The servers end with the run."""
    if _is_owner:
        end_shared_servers(RUN)
        shutil.rmtree(RUN, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The Prefect server of the run, which began with an empty database; its URL, for subprocesses."""
    from prefect.context import _temporary_global_settings_context, get_settings_context
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = f"http://{shared_server('prefect', RUN, OWNER)}/api"
    # As Prefect's own harness for tests does it, for a server that others use as well.
    with temporary_settings({PREFECT_API_URL: url}), _temporary_global_settings_context(get_settings_context()):
        yield url
        drain_prefect()


@pytest.fixture
def prefect_database(prefect_server: str) -> Path:
    """The file that the server keeps everything in."""
    return RUN / "prefect" / "prefect.db"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The host and port of the S3 server of the run. AWS's variables name its credentials, for subprocesses as well."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield shared_server("s3", RUN, OWNER)


_buckets = itertools.count()


@pytest.fixture
def s3(s3_server: str) -> Callable[[str], str]:
    """s3(path): the URI of a path in a bucket of the test's own, which is there and empty."""
    import pyarrow.fs as pafs

    bucket = f"test-{os.getpid()}-{next(_buckets)}"
    query = f"endpoint_override={s3_server}&scheme=http&region=us-east-1"
    pafs.FileSystem.from_uri(f"s3://{bucket}?{query}&allow_bucket_creation=true")[0].create_dir(bucket)
    return lambda path: f"s3://{bucket}/{path}?{query}"


@pytest.fixture(scope="session")
def slow_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry whose champion has hidden states so wide that a few hundred rows take some seconds. Read only."""
    import torch

    from attnlstm.config import ModelConfig
    from attnlstm.network import AttentionLSTM
    from builders import make_champion

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("slow") / "registry"
    make_champion(folder, AttentionLSTM(ModelConfig(hidden_size=64, classes=("x", "y", "z"))))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the small real datasets: ATTNLSTM_TEST_DATA, else shared/data beside the repository."""
    folder = Path(os.environ.get("ATTNLSTM_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no datasets in {folder}; ATTNLSTM_TEST_DATA names another folder")
    return folder
