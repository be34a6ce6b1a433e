"""Counts what would wait for a device: every look at a value that was computed."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "_to_copy")


class Looks(TorchDispatchMode):
    """The operators that waited, and all that ran, by name, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []
        self.ran: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports torch._dynamo, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.ran.append(name)
        # A copy waits where it leaves the device.
        if name in _WAITING and (name != "_to_copy" or (kwargs or {}).get("device") is not None):
            self.waited.append(name)
        return func(*args, **(kwargs or {}))
