"""Whether a tensor still is where it was and holds what it held, told by a sample of its memory."""

import ctypes
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What is compared: all of a tensor up to so many bytes, else so many pieces of so many bytes, the first and the last
# among them. A piece is a cache line: fetching those is what takes the time.
_WHOLE, _PIECE = 256, 64
_PIECES = 4


def answers_plainly(tensor: Tensor) -> bool:
    """Whether the extension may ask the tensor where it is: its class has no say in it."""
    plain = type(tensor) is Tensor or type(tensor).__torch_function__ is torch._C._disabled_torch_function_impl
    return plain and tensor.layout == torch.strided


# Of PyTorch's C interface, which is stable: where a tensor is, and what it is like.
_FUNCTIONS = ("data_ptr", "dim", "storage_size", "sizes", "strides", "dtype")


@lru_cache
def tensor_functions() -> tuple[int, ...]:
    """Returns the addresses of PyTorch's functions that tell of a tensor what its properties do, without an object of
    Python's; none where they are not found."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            try:
                library = ctypes.CDLL(str(path), os.RTLD_LAZY | os.RTLD_NOLOAD)  # the one that is loaded
                found = [getattr(library, f"aoti_torch_get_{each}") for each in _FUNCTIONS]
            except (OSError, AttributeError):
                return ()
            return tuple(ctypes.cast(each, ctypes.c_void_p).value or 0 for each in found)
    return ()


class Memory:
    """Where a tensor is, and which of its bytes are compared.

    Args:
        tensor: any.
        by_extension: whether the extension is there, to ask it.

    Attributes:
        asked, read: whether the extension asks where it is, and reads its bytes.
        place: version, address, shape, strides and dtype.
        pieces: (offset from the address, number) of the bytes to compare; none where the tensor has no memory of its
            own: meta, sparse, packed, or of a class that wraps others.
        storage, extent: what the memory belongs to, where that begins, and how large it is.
    """

    def __init__(self, tensor: Tensor, by_extension: bool) -> None:
        self.tensor = tensor
        self.place = _place(tensor)
        self.storage: torch.UntypedStorage | None = None
        self.extent = (0, 0)
        self.pieces: list[tuple[int, int]] = []
        with torch._C.DisableTorchFunctionSubclass():
            try:
                self.storage = tensor.untyped_storage()
                self.extent = (self.storage.data_ptr(), self.storage.nbytes())
                if tensor.device.type != "meta" and self.extent[0]:
                    self.pieces = _pieces(tensor, self.extent)
            except (RuntimeError, NotImplementedError):
                self.storage = None
        self.asked = by_extension and self.storage is not None and answers_plainly(tensor)
        self.read = self.asked and tensor.device.type == "cpu"

    def is_in_place(self) -> bool:
        """Whether the tensor, and the memory that it is part of, are where they were: before that is read."""
        if self.place != _place(self.tensor):
            return False
        return self.storage is None or self.extent[1] == self.storage.nbytes()

    def arguments(self) -> tuple[Any, ...]:
        """For the extension."""
        assert self.storage is not None
        where = self.tensor._cdata, self.storage._cdata
        return (self.tensor, *self.place, self.storage, self.extent[1], self.pieces if self.read else [], *where)

    def views(self) -> list[Tensor]:
        """The pieces, as bytes."""
        found = []
        for offset, size in self.pieces:
            assert self.storage is not None
            start = self.place[1] - self.extent[0] + offset
            view = torch.empty(0, dtype=torch.uint8, device=self.storage.device)
            found.append(view.set_(self.storage, start, (size,), (1,)))
        return found


def _place(tensor: Tensor) -> tuple[Any, ...]:
    with torch._C.DisableTorchFunctionSubclass():
        try:
            version = tensor._version
        except RuntimeError:  # an inference tensor has none
            version = -1
        try:
            return version, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
        except (RuntimeError, NotImplementedError):
            return version, 0, (), (), tensor.dtype


def _pieces(tensor: Tensor, extent: tuple[int, int]) -> list[tuple[int, int]]:
    if not tensor.numel():
        return []
    size = tensor.element_size()
    strides, shape = tensor.stride(), tensor.shape
    span = size * (1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)))
    if tensor.data_ptr() + span > sum(extent):  # the memory was taken away under the tensor
        return []
    if span == size * tensor.numel():
        if span <= _WHOLE:
            return [(0, span)]
        last = span - _PIECE
        starts = [index * last // (_PIECES - 1) // _PIECE * _PIECE for index in range(_PIECES - 1)]
        return [(start, _PIECE) for start in (*starts, last)]
    # With gaps, in which others may lie, or expanded: element by element.
    count = min(tensor.numel(), 4 * _PIECES)
    chosen = sorted({index * (tensor.numel() - 1) // max(count - 1, 1) for index in range(count)})
    offsets = []
    for index in chosen:
        offset = 0
        for length, stride in zip(reversed(shape), reversed(strides), strict=True):
            index, place = divmod(index, length)
            offset += place * stride
        offsets.append((offset * size, size))
    return offsets
