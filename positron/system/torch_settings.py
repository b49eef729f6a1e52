"""Give settings of torch that hold for all threads another value for a while, also if several threads do so at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

Value = TypeVar("Value")


class SharedSetting(Generic[Value]):
    """Give a setting of the process a fixed value inside of blocks, in any number of threads at once.

    The first block that begins stores the earlier value, and the last block that ends restores it. If each block stored and
    restored the value by itself, a second block would store the value that the first one has set. If the first block ended
    before the second, the second would restore this value, and the setting would stay changed.
    """

    def __init__(self, read: Callable[[], Value], write: Callable[[Value], None], value: Value) -> None:
        """Change nothing yet. `read` and `write` get and set the setting, and `value` is its value inside of the blocks."""
        self._read, self._write, self._value = read, write, value
        self._lock, self._blocks = threading.Lock(), 0
        self._before: Value

    @contextmanager
    def changed(self) -> Iterator[None]:
        """Run the block with the changed setting."""
        with self._lock:
            if not self._blocks:
                self._before = self._read()
                self._write(self._value)
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    self._write(self._before)


_matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def _of_products(value: str) -> SharedSetting[str]:
    """Return the precision to which a CPU may round the factors of float32 matrix products, as a setting."""
    return SharedSetting(lambda: _matmul.fp32_precision, lambda new: setattr(_matmul, "fp32_precision", new), value)


# new tensors whose dtype is not given
float32_tensors = SharedSetting(torch.get_default_dtype, torch.set_default_dtype, torch.float32)
exact_products = _of_products("ieee")
bf16_products = _of_products("bf16")
