"""A full disk, or a signal, in the middle of a file is named as what it is, and the file before it stays whole."""

import sys
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from faults import full_disk

from positron.system import disk
from positron.system.disk import whole_file
from positron.system.errors import LeftAtOnce, UserError
from positron.training.callbacks.checkpoints import WholeCheckpointIO

if sys.platform == "win32":
    pytest.skip("Windows has no limit for the size of a file", allow_module_level=True)
import resource


def picture(file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8))
    figure.add_subplot().imshow(np.random.default_rng(0).random((200, 200)))
    figure.savefig(file)


def archive(file):
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("x", bytes(200_000))


WRITERS = {
    "torch.save": lambda file: torch.save({"a": torch.zeros(50_000), "b": [torch.zeros(9)] * 50}, file),
    "safetensors": lambda file: file.write(safetensors.torch.save({"a": torch.zeros(50_000)})),
    "np.save": lambda file: np.save(file, np.zeros(50_000)),
    "np.savez": lambda file: np.savez(file, a=np.zeros(50_000)),
    "matplotlib": picture,
    "zipfile": archive,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_whichever_library_writes(tmp_path, writer):
    path, old = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    with whole_file(path) as file:
        WRITERS[writer](file)
    content = path.read_bytes()
    for limit in (0, 1_000, len(content) // 2, len(content) - 70):
        try:
            full_disk(limit)
            with (
                pytest.raises(UserError, match="File too large; raise the limit"),
                whole_file(path) as f,
            ):
                WRITERS[writer](f)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "No space left on device; free disk space, and give the same command"),
        (OSError("9 requested and 4 written"), "9 requested and 4 written; the disk may be full: free disk space"),
        (OSError(27, "File too large"), "File too large; raise the limit for the size of a file"),
        (OSError(5, "Input/output error"), "Input/output error; give another path"),
    ],
)
@pytest.mark.parametrize("whole", [disk.whole_file, disk.whole_folder])
def test_a_file_and_a_folder_on_a_full_disk_have_the_same_remedy(tmp_path, whole, error, says):
    with pytest.raises(UserError, match=f"cannot write .*new: {says}"), whole(tmp_path / "new"):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device"), LeftAtOnce(15)])
def test_torch_does_not_hide_what_interrupted_a_checkpoint(tmp_path, monkeypatch, fault):
    """An error or a signal in the middle of a write: torch.save itself would raise a RuntimeError about positions."""
    write = disk._Recorder.write

    def interrupted(self, data):
        if self.file.tell() > 10_000:
            self.fault = fault
            raise fault
        return write(self, data)

    monkeypatch.setattr(disk._Recorder, "write", interrupted)
    wanted = UserError if isinstance(fault, OSError) else type(fault)
    with pytest.raises(wanted, match="No space left on device" if wanted is UserError else None):
        WholeCheckpointIO().save_checkpoint(
            {"a": torch.zeros(50_000), "b": torch.zeros(9)}, tmp_path / "step-000001.ckpt"
        )
    assert list(tmp_path.iterdir()) == []
