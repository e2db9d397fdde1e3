"""Counts the operations that launch work on a device, even where there is none: a small step costs its launches."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
UNMARKED_VIEWS = ("_unsafe_view",)


class Operations(TorchDispatchMode):
    """Collects what is launched inside it, backward passes included: ATen operations but for views and allocations.

    A foreach or fused operation counts once, however many tensors it is given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        is_work = operation.namespace == "aten" and not operation.is_view
        if is_work and name not in (*ALLOCATIONS, *UNMARKED_VIEWS):
            self.launched.append(name)
        return operation(*args, **(kwargs or {}))


def launched(work: Callable[[], object]) -> list[str]:
    """The names of what work() launches; call it once before, as a first call may do more."""
    with Operations() as operations:
        work()
    return operations.launched
