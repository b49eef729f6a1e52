"""What TensorBoard gets, read back with its own library."""

import io
from pathlib import Path

import pytest
from conftest import ONE_PIXEL
from PIL import Image

from positron.config import LoggerConfig, TensorboardConfig
from positron.run.paths import RunPaths
from positron.run.samples import Sample
from positron.training.trackers.open import open_trackers


def test_a_continued_run_hides_what_was_written_later_and_adds_its_metrics_texts_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.compat.proto.event_pb2 import SessionLog

    picture = RunPaths(tmp_path).attention_picture(4)
    picture.parent.mkdir()
    picture.write_bytes(ONE_PIXEL)
    (board,) = open_trackers(LoggerConfig(tensorboard=TensorboardConfig()), tmp_path, {}, first_step=3)
    board.log({"step": 3, "train/loss": 2.5, "val/bpb": 1.25}, 3)
    board.sample(Sample(4, 2.0, None, "Once upon"))
    board.finish(0)

    (file,) = (tmp_path / "tensorboard").iterdir()
    events = list(EventFileLoader(str(file)).Load())
    assert [event.step for event in events if event.session_log.status == SessionLog.START] == [3]
    found = {(event.step, value.tag): value.tensor for event in events for value in event.summary.value}
    assert {key: tensor.float_val[0] for key, tensor in found.items() if tensor.float_val} == {
        (3, "train/loss"): 2.5,
        (3, "val/bpb"): 1.25,
    }
    assert found[4, "sample/text_summary"].string_val[0] == b"Once upon"
    width, height, png = found[4, "attention"].string_val
    assert (width, height) == (b"1", b"1")
    assert pixels(png) == pixels(ONE_PIXEL)


def pixels(png: bytes) -> bytes:
    """The red, green and blue of each pixel."""
    return Image.open(io.BytesIO(png)).convert("RGB").tobytes()
