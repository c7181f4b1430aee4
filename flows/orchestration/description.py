"""What Prefect says of a flow as a whole: the prose of its docstring, without the help of its parameters.

Prefect takes the form's help texts from the docstring's Args, and would show all of it, Args included, as description.
"""

import inspect
from typing import Any, TypeVar

from prefect import Flow

_AnyFlow = TypeVar("_AnyFlow", bound=Flow[..., Any])


def described(flow: _AnyFlow) -> _AnyFlow:
    """A decorator above `@flow`."""
    flow.description = (inspect.getdoc(flow.fn) or "").partition("\n\nArgs:\n")[0]
    return flow
