"""Which faults may pass, so that trying again makes sense."""

import errno
from typing import Any

from prefect import State, Task
from prefect.client.schemas.objects import TaskRun

# The system's own word that the next try will meet the same: no such file, no permission, disk full, read-only.
_LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR}


def is_transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """For `retry_condition_fn`: True for faults of the network or the disk that may pass."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and error.errno not in _LASTING
