"""Make training batches from a streamed corpus, and run the process that writes its next tokens before they are needed.

The corpus is cut into epochs of `data.tokens_per_epoch` tokens, each with new text (see `stream.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import queue
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from positron.config import DataConfig
from positron.data.shards import TokenFiles
from positron.data.stream import Stream
from positron.data.window_order import windows_of_step
from positron.system.children import CHILDREN, end_with_parent, leave_interrupts_to_parent
from positron.system.disk import expanded, make_folder, open_descriptor
from positron.system.errors import Unreachable, UserError, raise_together
from positron.system.locks import lock
from positron.system.log import log_received, log_to_queue

logger = logging.getLogger(__name__)

EPOCHS_AHEAD = 1  # number of epochs that are written before they are needed


class StreamWindows:
    """Make training batches (B, T + 1) of a streamed corpus, as `Windows` does for token files of a fixed text.

    A batch at the border of two epochs has windows of both. `folder`: the folder that `open_stream` returned. Raises UserError
    if an epoch is shorter than one window of `window` tokens, or than a batch.
    """

    def __init__(self, config: DataConfig, folder: Path, *, window: int, batch_size: int, seed: int) -> None:
        # absolute, because a callback may change the current folder before the next epochs are written
        located = dataclasses.replace(config, dir=str(expanded(config.dir).absolute()))
        self.stream = Stream(located, folder.absolute() / "tokenizer")
        self.window, self.batch_size, self.seed = window, batch_size, seed
        self.n_windows = self.stream.size // window
        if self.n_windows < 1:
            raise UserError(
                f"data.tokens_per_epoch={config.tokens_per_epoch} is less than a window of {window} tokens: "
                "give a larger number, such as data.tokens_per_epoch=10M"
            )
        if batch_size > self.n_windows:  # a batch may lie in two epochs, but not in three
            raise UserError(
                f"data.tokens_per_epoch={config.tokens_per_epoch} is less than the {batch_size * window:,} tokens of a step: "
                "give a larger number, such as data.tokens_per_epoch=10M, or a smaller train.batch_tokens="
            )
        self._files: dict[int, TokenFiles] = {}
        self._filler: _Filler | None = None
        self._user = contextlib.ExitStack()
        self._note: Path | None = None  # the file below `users/` with this run's epoch
        self._noted: int | None = None  # the epoch in that file
        self.text_tokens = math.inf  # every epoch has new text
        first = self.tokens
        self.fingerprint, self.bytes_per_token = first.fingerprint, first.n_bytes / first.n_tokens

    @property
    def tokens(self) -> TokenFiles:
        """Return the token files of one complete epoch on the disk: the first one that the file system lists.

        The caller cannot choose the epoch. Its statistics, such as the mean number of bytes per token, are used as estimates
        for the whole text.
        """
        any_epoch = next(self.stream.folder.glob("epoch-*/tokens.json")).parent
        return TokenFiles(any_epoch, "train", self.stream.tokenizer)

    def batch(
        self,
        step: int,
        rank: int = 0,
        world_size: int = 1,
        interruption: Callable[[], Exception | None] = lambda: None,
    ) -> Tensor:
        """Return the rows of optimizer step `step` (1, 2, ...) that process `rank` trains on, (B / world_size, T + 1).

        The text is divided into epochs, which another process writes to the disk. This method waits until the epochs that the
        step reads are complete. Raises Unreachable if the network fails, UserError if the text cannot be read, and the error
        that `interruption` returns during the wait in any process. All processes raise the same error.
        """
        share = self.batch_size // world_size
        own_part = slice(rank * share, (rank + 1) * share)
        epochs, windows = windows_of_step(step, seed=self.seed, n_windows=self.n_windows, batch_size=self.batch_size)
        first = int(epochs[0])
        self._enter(first, fills=rank == 0)
        files = {epoch: self._open(epoch, world_size, interruption) for epoch in range(first, int(epochs[-1]) + 1)}
        self._files = files
        rows = [
            files[int(epoch)].read(int(number) * self.window, self.window + 1)
            for epoch, number in zip(epochs[own_part], windows[own_part], strict=True)
        ]
        return torch.from_numpy(np.stack(rows))

    def _enter(self, epoch: int, fills: bool) -> None:
        """Record that this training reads the files of `epoch`, so that no other process deletes them.

        Another process writes the files of the next epochs. This method starts that process if it is not running, and tells it
        the number `epoch`. `fills`: true only in the process with rank 0 of a distributed training. If `fills` is false, the
        method does nothing.
        """
        if not fills:
            return
        if self._note is None:
            name = f"{os.getpid()}-{secrets.token_hex(4)}"  # containers that share a folder may use the same process id
            self._note = make_folder(self.stream.folder / "users") / name
            self._user.enter_context(lock(self._note, lambda: None))
        if self._noted != epoch:
            with os.fdopen(open_descriptor(self._note, "lock"), "r+b") as file:
                file.write(b"%020d" % epoch)  # in place and always as long, so that no reader finds an empty file
            self._noted = epoch
        if self._filler is None:
            self._filler = _Filler(self.stream.config, self.stream.tokenizer_folder, epoch)
            self._user.callback(self._filler.end)
        self._filler.at(epoch)
        self._filler.listen()

    def _open(self, epoch: int, world_size: int, interruption: Callable[[], Exception | None]) -> TokenFiles:
        """Return the files of an epoch, as soon as all `world_size` processes of the training find them on the disk.

        Only the process with rank 0 knows why files cannot be written, and perhaps only one process has received a signal. All
        processes raise its error, because the others would wait forever.
        """
        if epoch in self._files:
            return self._files[epoch]
        has_logged = False
        while True:
            error = None
            if not self.stream.has(epoch):
                if not has_logged:
                    logger.info(f"waiting for the text of epoch {epoch}")
                    has_logged = True
                error = interruption() or (self._filler.listen(waits=True) if self._filler else None)
            reports = _of_all_processes((self.stream.has(epoch), error), world_size)
            if all(is_there for is_there, _ in reports):
                return TokenFiles(self.stream.path(epoch), "train", self.stream.tokenizer)
            for is_there, error in reports:
                if error is not None and not is_there:
                    raise_together(error)
            time.sleep(0.05)

    def close(self) -> None:
        """End the process that writes the token files of the next epochs, and unlock the files of the epoch in use.

        Other processes may then delete these files.
        """
        self._user.close()
        self._filler, self._note, self._noted = None, None, None


def _of_all_processes(value: Any, world_size: int) -> list[Any]:
    """Return what each process of the training has given to this call, by rank; all of them must call it together.

    `world_size` is their number. Before they are connected, only the value of this process is returned.
    """
    if world_size == 1 or not distributed.is_initialized():  # the calling program may have connected others
        return [value]
    values = [value] * world_size
    distributed.all_gather_object(values, value)
    return values


class _Filler:
    """Run the process that writes the token files of each epoch before training needs them.

    After a failure of the network, the process tries again. Training raises the error only if it needs the missing epoch.
    """

    def __init__(self, config: DataConfig, tokenizer_folder: Path, epoch: int) -> None:
        self._epoch, self._reports = CHILDREN.Value("q", epoch), CHILDREN.Queue()
        self._process = CHILDREN.Process(
            target=_fill, args=(config, tokenizer_folder, self._epoch, self._reports), daemon=True
        )
        self._process.start()
        self._fatal: UserError | None = None

    def at(self, epoch: int) -> None:
        self._epoch.value = epoch

    def listen(self, waits: bool = False) -> Exception | None:
        """Log the messages of the process that writes the token files, and return its error, or None if there is no error.

        If the process ended without reporting an error, a RuntimeError is returned. `waits`: true if training cannot continue
        without the files of the next epoch. If `waits` is false, the log message about a failure of the network says that
        training continues.
        """
        unreachable: Exception | None = None
        while True:
            try:
                report = self._reports.get_nowait()
            except queue.Empty:
                break
            match report:
                case logging.LogRecord():
                    log_received(report)
                case Unreachable():
                    unreachable = report
                    logger.info(
                        str(report)
                        if waits
                        else f"training continues with the text that is already on the disk; {report}"
                    )
                case UserError():
                    self._fatal = report
        if self._fatal is not None:
            return self._fatal
        if unreachable is None and not self._process.is_alive():
            return RuntimeError(f"the process that fetches text ended with code {self._process.exitcode}")
        return unreachable

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def _fill(config: DataConfig, tokenizer_folder: Path, epoch: Any, reports: Any) -> None:
    log_to_queue(reports)
    leave_interrupts_to_parent()
    if sys.platform != "win32":
        os.nice(10)
    end_with_parent()
    stream = Stream(config, tokenizer_folder)
    while True:
        missing = [e for e in range(epoch.value, epoch.value + 1 + EPOCHS_AHEAD) if not stream.has(e)]
        try:
            if missing:
                stream.make(missing[0])
            else:
                time.sleep(0.1)
        except Unreachable as error:
            reports.put(Unreachable(str(error)))
        except UserError as error:
            reports.put(UserError(str(error)))
            return  # the error is raised when training needs the epoch; until then, the epochs on the disk suffice
