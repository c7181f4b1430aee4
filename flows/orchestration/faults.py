"""Which faults may pass, so that trying again makes sense."""

import errno
import re
from typing import Any

from prefect import State, Task
from prefect.client.schemas.objects import TaskRun

# The system's own word that the next try will meet the same: no such file, no permission, disk full, read-only.
_LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR}

# Errors of object stores have no such number, but Arrow's words for what the store said. A refusal stays one.
_REFUSED = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_|NO_SUCH_|RESOURCE_NOT_FOUND|SIGNATURE_)|HTTP status 4(?!08|29)"
)


def is_transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """For `retry_condition_fn`: True for faults of the network or the disk that may pass."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and error.errno not in _LASTING and not _REFUSED.search(str(error))
