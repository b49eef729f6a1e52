"""`positron serve`: a run from disk, the errors of its options, and Ctrl-C."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from pathlib import Path

import httpx
import pytest
from conftest import tiny

from positron import load
from positron.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    train(tiny(folder, train__max_steps=5), folder / "outputs" / "base")
    return folder


def test_a_run_is_served_until_ctrl_c_which_ends_streams_at_once(folder, start):
    command = start("serve", "base", "--port", "0", folder=folder)
    while "press Ctrl-C to stop" not in command.said():
        assert command.process.is_alive()
    assert "base continues texts; it reads 32 tokens" in command.said()
    url = re.search(r"http://\S+/v1", command.said())[0]
    body = {"model": "base", "prompt": "Tom", "max_tokens": 20, "seed": 3}
    text = httpx.post(f"{url}/completions", json=body).json()["choices"][0]["text"]
    assert text == "".join(load(folder / "outputs" / "base").stream("Tom", max_tokens=20, seed=3))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("outputs/**/*")}
    endless = {**body, "max_tokens": 30_000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/completions", json=endless, timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        os.kill(command.process.pid, signal.SIGINT)
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in lines:
                pass
    result = command.wait()
    assert (result.code, result.err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in folder.glob("outputs/**/*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base", "--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines use the models: give --api-key KEY"),
        (["base", "--api-key", "secret"], "the API key of --api-key must have at least 16 characters"),
        (["nobody"], "no run nobody"),
        (["base", "other/base"], "would both be served as base"),
        (["base", "base"], "outputs/base is given twice: give it once"),
        (["base", "--port", "99999"], "port 99999: a port is a number from 0 to 65535; choose another port"),
        (["base", "--host", "999.1.1.1"], "; choose an address of this machine with --host"),
        (["base", "--weights", "fp8"], "--weights fp8 is not a weight precision"),
    ],
)
def test_a_wrong_option_is_one_line(folder, run_command, arguments, message):
    if not (folder / "outputs" / "other").exists():
        shutil.copytree(folder / "outputs" / "base", folder / "outputs" / "other" / "base")
    result = run_command("serve", *arguments, folder=folder)
    assert result.code == 2
    assert message in result.err.splitlines()[-1]


def test_a_port_that_is_taken_is_named(folder, run_command):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run_command("serve", "base", "--port", str(port), folder=folder)
    assert result.code == 2
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose another port" in result.err
