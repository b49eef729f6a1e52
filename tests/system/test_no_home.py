"""Users without a home folder, as in containers: what needs none works, and what does says what to set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FAST, PROJECT

from positron.data.listing import list_files
from positron.system.disk import expanded
from positron.system.download import cache_folder
from positron.system.errors import UserError
from positron.training.trackers.wandb import has_wandb_key

if sys.platform == "win32":
    pytest.skip("Windows knows the home folder of every user", allow_module_level=True)
import pwd


@pytest.fixture
def homeless(monkeypatch):
    """No HOME, and a user that the system has no name for."""

    def unknown(*_):
        raise KeyError("uid not found")

    for key in ("HOME", "USER", "LOGNAME", "POSITRON_CACHE", "NETRC", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("~/x.txt", "set the variable HOME"),
        ("~", "set the variable HOME"),
        ("~nobody-of-this-name/x.txt", "correct the name of the user, nobody-of-this-name"),
    ],
)
def test_a_path_below_an_unknown_home_folder_is_named(homeless, path, advice):
    for read in (expanded, lambda given: list_files(given)):
        with pytest.raises(UserError, match=f"the home folder in {path} is not known: {advice}, or give the full path"):
            read(path)


def test_downloads_say_where_they_could_be_kept(homeless, monkeypatch):
    with pytest.raises(UserError, match="set the variable POSITRON_CACHE"):
        cache_folder("text")
    monkeypatch.setenv("POSITRON_CACHE", "here")
    assert cache_folder("text") == Path("here/text")
    assert not has_wandb_key()


@pytest.mark.slow  # nothing that is compiled can be kept, so each command compiles again
@pytest.mark.parametrize("home", ["/nonexistent", "/proc", ""])
def test_a_home_folder_that_cannot_be_written_is_not_needed(tmp_path, home):
    """In processes that import everything themselves: Numba decides at its import where to keep what it compiles."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "HOME": home}
    for words in (
        ("train", "model=debug", *FAST, "train.max_steps=2", "device=cpu", "name=a"),
        ("generate", "Once", "--run", "a", "--max-tokens", "3"),
    ):
        command = [sys.executable, "-m", f"positron.{words[0]}", *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
