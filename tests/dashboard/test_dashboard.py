"""The dashboard: every run told as it is, live, to this machine only."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import random
import signal
import threading
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import opened
from conftest import PATIENCE, tiny
from serving_models import Running

from positron.dashboard.curves import Metrics, reduced
from positron.dashboard.table import is_live
from positron.system.locks import lock
from positron.text.char_word import CharTokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def make_run(outputs: Path, name: str, steps: int = 30, **facts) -> Path:
    """The files of a run that nobody trained."""
    import dataclasses

    folder = outputs / name
    (folder / "tokenizer").mkdir(parents=True)
    CharTokenizer("abc").save(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(tiny(outputs))))
    resolved = {"batch_tokens": 512, "micro_batch_size": 16, "max_steps": steps}
    about = {"name": name, "status": "finished", "floor_bpb": 0.2, "resolved": resolved}
    (folder / "run.json").write_text(json.dumps({**about, **facts}))
    (folder / "lock").touch()
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            row = {"step": step, "tokens": 512 * step, "time_s": step / 2, "train/loss": 4 / step}
            if step % 10 == 0:
                row["val/bpb"] = 1 + 1 / step
            file.write(json.dumps(row) + "\n")
    (folder / "samples.md").write_text(
        "## Step 10 · loss 0.4\n\nOnce upon a <time>.\n\n## Step 20 · loss 0.2\n\nTwice.\n\n"
    )
    return folder


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    make_run(tmp_path / "outputs", "one")
    make_run(tmp_path / "outputs", "sweeps/lr/0")
    return tmp_path / "outputs"


class Page:
    def __init__(self, running: Running) -> None:
        self.url, self.port = running.url, running.port

    def get(self, path: str, host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{self.port}")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())

    def json(self, path: str) -> dict:
        status, body, _ = self.get(path)
        assert status == 200, body
        return json.loads(body)


@pytest.fixture
def page(outputs: Path):
    running = Running(folder=outputs)
    yield Page(running)
    running.stop()


def test_the_table_has_every_run_and_job(page: Page, outputs: Path) -> None:
    make_run(outputs, "killed", status="running")
    empty = outputs / "empty"
    empty.mkdir()
    (empty / "run.json").write_text("{}")
    failed = outputs / "sweeps" / "lr" / "1"
    failed.mkdir()
    (failed / "job.json").write_text(json.dumps({"overrides": ["optimizer.lr=-1"], "failed": "must be positive"}))
    rows = {row["id"]: row for row in page.json("/api/runs")["runs"]}
    assert sorted(rows) == ["empty", "killed", "one", "sweeps/lr/0", "sweeps/lr/1"]
    one = rows["one"]
    assert (one["step"], one["tokens"], one["max_steps"]) == (30, 30 * 512, 30)
    assert (one["bpb"], one["best"], one["floor"]) == (1 + 1 / 30, 1 + 1 / 30, 0.2)
    assert one["params"] > 10_000
    assert one["flops_per_token"] > 6 * 10_000
    assert (one["status"], rows["killed"]["status"], rows["killed"]["live"]) == ("finished", "killed", False)
    assert (rows["sweeps/lr/1"]["status"], rows["sweeps/lr/1"]["notes"]) == ("failed", ["must be positive"])
    assert "no metrics yet" in rows["empty"]["notes"]


def choose(folder: Path, overrides: list[str] | None = None, fingerprint: str = "f", **settings: object) -> None:
    """Change the settings of a made run, by dotted key with `__` for the dot, and note its text and its job."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in settings.items():
        group, _, name = key.partition("__")
        config[group][name] = value
    (folder / "config.json").write_text(json.dumps(config))
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "data_fingerprint": fingerprint}))
    if overrides is not None:
        (folder / "job.json").write_text(json.dumps({"overrides": overrides, "failed": None}))


def test_runs_of_different_texts_are_told_apart(page: Page, outputs: Path) -> None:
    choose(make_run(outputs, "own", floor_bpb=None), fingerprint="g", data__source="text", data__path="/home/me/my.txt")
    choose(make_run(outputs, "hub"), fingerprint="h", data__source="hub", data__repo="a/b")
    rows = {row["id"]: row for row in page.json("/api/runs")["runs"]}
    assert (rows["own"]["text"], rows["own"]["fingerprint"], rows["own"]["above"]) == ("my.txt", "g", None)
    assert rows["hub"]["text"] == "a/b"
    assert rows["one"]["text"] == "stories, 0.2 MB"
    assert rows["one"]["above"] == pytest.approx((1 + 1 / 30) / 0.2 - 1)


def test_losses_on_beginnings_of_the_same_length_are_comparable_whatever_limited_them(
    page: Page, outputs: Path
) -> None:
    for name, length, limit, floor in (("a", 3000, 2000, 0.2), ("b", 3000, 900, 0.201), ("c", 9000, 2000, 0.2)):
        choose(make_run(outputs, name, floor_bpb=floor, **{"val/bytes": length}), train__val_tokens=limit)
    validated = {row["id"]: row["validated"] for row in page.json("/api/runs")["runs"]}
    assert validated["a"] == validated["b"] != validated["c"]


def test_a_text_whose_name_is_not_utf_8_is_shown_with_an_escape(page: Page, outputs: Path) -> None:
    choose(make_run(outputs, "latin"), data__source="text", data__path="caf\udce9.txt")
    rows = {row["id"]: row for row in page.json("/api/runs")["runs"]}
    assert (rows["latin"]["text"], rows["one"]["text"]) == ("caf\udce9.txt", "stories, 0.2 MB")


def test_fine_tuning_lies_above_the_floor_by_its_best(page: Page, outputs: Path) -> None:
    folder = make_run(outputs, "tuned")
    (folder / "chat.json").write_text("{}")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 31, "tokens": 1, "val/bpb": 9.0}) + "\n")
    (row,) = [row for row in page.json("/api/runs")["runs"] if row["id"] == "tuned"]
    assert row["above"] == pytest.approx((1 + 1 / 30) / 0.2 - 1)


@pytest.mark.parametrize(
    ("jobs", "shown"),
    [
        ([["a=1", "lr=1"], ["a=1", "lr=2"]], ["lr=1", "lr=2"]),
        ([["a=1", "lr=1"], ["a=1", "lr=2"], ["a=1", "lr=2", "b=3"]], ["lr=1", "lr=2", "lr=2 b=3"]),
        ([["a=1", "lr=1"]], ["a=1 lr=1"]),
    ],
)
def test_jobs_of_a_sweep_show_what_differs_and_can_be_found_by_all(
    page: Page, outputs: Path, jobs: list[list[str]], shown: list[str]
) -> None:
    for i, overrides in enumerate(jobs):
        choose(make_run(outputs, f"sweeps/grid/{i}"), overrides)
    rows = {row["id"]: row for row in page.json("/api/runs")["runs"]}
    assert [rows[f"sweeps/grid/{i}"]["differs"] for i in range(len(jobs))] == shown
    assert [rows[f"sweeps/grid/{i}"]["overrides"] for i in range(len(jobs))] == [" ".join(job) for job in jobs]
    assert rows["one"]["differs"] == ""


def test_two_configurations_show_the_settings_in_which_they_differ(page: Page, outputs: Path) -> None:
    choose(outputs / "one", model__d_model=64, optimizer__lr=0.5)
    assert page.json("/api/differences?run=one&other=sweeps/lr/0") == [
        ["model.d_model", "64", "32"],
        ["optimizer.lr", "0.5", "0.003"],
    ]
    assert page.json("/api/differences?run=one&other=one") == []
    (outputs / "one" / "config.json").write_text("[1]")
    assert ["seed", "not set", "1"] in page.json("/api/differences?run=one&other=sweeps/lr/0")


def test_a_run_lives_as_long_as_the_process_that_trains_it(outputs: Path) -> None:
    folder = make_run(outputs, "live", status="running")
    assert not is_live(folder)
    with lock(folder / "lock", lambda: pytest.fail("nobody else trains it")):
        assert is_live(folder)
    assert not is_live(folder)


def test_asking_whether_a_run_lives_does_not_keep_it_from_being_trained(outputs: Path) -> None:
    folder, stop = make_run(outputs, "asked"), threading.Event()

    def ask() -> None:
        while not stop.wait(0.001):  # a thousand times as often as the page does
            is_live(folder)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(30):
            with lock(folder / "lock", lambda: pytest.fail("nobody holds it for longer than a look")):
                pass
    finally:
        stop.set()
        thread.join()


def test_a_curve_goes_on_where_it_ended_and_a_half_written_line_waits(page: Page, outputs: Path) -> None:
    first = page.json("/api/curve?run=one&key=train/loss")
    assert first["fresh"]
    assert first["step"] == list(range(1, 31))
    assert first["value"] == [4 / step for step in range(1, 31)]
    assert page.json("/api/curve?run=one&key=val/bpb")["step"] == [10, 20, 30]
    with (outputs / "one" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "train/loss": 0.1}\n{"step": 32, "train')
    on = page.json(f"/api/curve?run=one&key=train/loss&file={first['file']}&after={first['offset']}")
    assert (on["fresh"], on["step"], on["value"]) == (False, [31], [0.1])
    rows = (outputs / "one" / "metrics.jsonl").read_text().splitlines()[:5]
    replaced = outputs / "one" / "new"
    replaced.write_text("\n".join(rows) + "\n")
    replaced.replace(outputs / "one" / "metrics.jsonl")  # what a resumed run does
    again = page.json(f"/api/curve?run=one&key=train/loss&file={on['file']}&after={on['offset']}")
    assert (again["fresh"], again["step"]) == (True, [1, 2, 3, 4, 5])
    longer = "".join(json.dumps({"step": step, "train/loss": 7.0}) + "\n" for step in range(1, 100))
    (outputs / "one" / "metrics.jsonl").write_text(longer)  # another file that got the same inode
    other = page.json(f"/api/curve?run=one&key=train/loss&file={again['file']}&after={again['offset']}")
    assert (other["fresh"], other["step"], set(other["value"])) == (True, list(range(1, 100)), {7.0})


def test_samples_and_reports_are_those_of_the_run(page: Page, outputs: Path) -> None:
    samples = page.json("/api/samples?run=one")
    assert [sample["text"] for sample in samples] == ["Once upon a <time>.", "Twice."]
    assert page.get("/report?run=one")[0] == 404
    (outputs / "one" / "report.html").write_text("<p>fine</p>")
    status, body, headers = page.get("/report?run=one")
    assert (status, body) == (200, b"<p>fine</p>")
    assert headers["content-security-policy"].startswith("sandbox")


def test_nothing_leaves_the_folder_and_no_other_site_may_ask(page: Page, outputs: Path) -> None:
    (outputs.parent / "secret.html").write_text("what nobody may see")
    (outputs / "one" / "report.html").symlink_to(outputs.parent / "secret.html")
    wrong = (
        "/report?run=one",
        "/report?run=..",
        "/report?run=/etc",
        "/../secret.html",
        "/static/runs/../routes.py",
        "/routes.py",
        "/api/curve?run=../one&key=step",
        "/api/samples?run=%2e%2e",
        "/api/curve?run=one&after=-1",
        "/nothing",
    )
    for path in wrong:
        status, body, _ = page.get(path)
        assert (status, b"nobody may see" in body) == (404, False), path
    assert page.get("/api/runs", host="evil.example")[0] == 403
    assert page.get("/api/runs", host=f"localhost:{page.port}")[0] == 200


def test_the_page_and_its_parts_come_from_here_alone(page: Page) -> None:
    status, body, headers = page.get("/runs")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    text = body.decode()
    assert "http://" not in text
    assert "https://" not in text
    for part in ("page.js", "table.js", "chart.js", "format.js", "page.css", "vendor/uPlot.iife.min.js"):
        assert page.get(f"/static/runs/{part}")[0] == 200


@pytest.mark.parametrize("n", [5, 1000, 1001, 50_000])
def test_thinned_curves_keep_their_ends_and_extremes(n: int) -> None:
    rng = random.Random(n)
    values = [rng.gauss(0, 1) for _ in range(n)]
    kept = reduced(values)
    assert kept == sorted(set(kept))
    assert len(kept) <= 1100
    assert {0, n - 1, values.index(min(values)), values.index(max(values))} <= set(kept)


def test_numbers_that_are_none_and_lines_that_are_no_json_do_not_end_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": null}\nnonsense\n{"step": 2, "a": NaN}\n{"step": 3, "a": 1.5}\n')
    metrics = Metrics(path)
    metrics.read()
    assert metrics.curve("a", "", 0)["step"] == [3]
    assert metrics.keys == ["a"]
    assert "metrics.jsonl line 3 is damaged (a is not a finite number)" in metrics.trouble
    assert not math.isnan(metrics.last("a") or 0)


def test_the_command_says_where_it_is_and_ctrl_c_ends_it(start, run_command, outputs: Path) -> None:
    running = start("dashboard", "--port", "0", folder=outputs.parent)
    while "press Ctrl-C to stop" not in running.said():
        assert running.process.is_alive()
        time.sleep(0.02)
    port = running.said().split("127.0.0.1:")[1].split("/")[0]
    taken = run_command("dashboard", "--port", port, folder=outputs.parent)
    assert (taken.code, taken.err.count("\n")) == (2, 1)
    assert f"cannot listen on 127.0.0.1, port {port}" in taken.err
    os.kill(running.process.pid, signal.SIGINT)
    assert running.wait().code == 0
    assert (
        run_command("dashboard", "nowhere", folder=outputs.parent).err
        == "positron: there is no folder nowhere: give the folder that contains your runs, such as outputs\n"
    )


def _tick_all_runs(shown) -> None:
    shown.wait_for_selector("#rows tr")  # the box is ticked by the page itself if all runs are shown at first
    shown.get_by_label("show the curves of all runs in the table").check()


def test_a_browser_shows_the_table_and_the_curves(browser: Browser, page: Page) -> None:
    with opened(browser, f"{page.url}/runs") as shown:
        shown.get_by_text("sweeps/lr/0").first.wait_for()
        shown.wait_for_selector("#charts canvas")
        assert shown.get_by_label("Metric").input_value() == "val/bpb"
        floor = shown.locator(".legend li", has_text="floor")
        assert floor.locator("b").inner_text() == "0.2000"  # as many digits as the values beside it


def test_runs_of_different_texts_have_charts_of_their_own(browser: Browser, page: Page, outputs: Path) -> None:
    choose(make_run(outputs, "own", floor_bpb=None), fingerprint="g", data__source="text", data__path="/home/me/my.txt")
    for name in ("own", "one"):
        with (outputs / name / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 31, "tokens": 1, "train/lr": 0.1}) + "\n")
    with opened(browser, f"{page.url}/runs") as shown:
        _tick_all_runs(shown)
        shown.locator("#charts figure").nth(1).wait_for()
        assert sorted(shown.locator("#charts figcaption").all_inner_texts()) == ["my.txt", "stories, 0.2 MB"]
        assert "cannot be compared" in shown.locator("#chart-note").inner_text()
        assert shown.locator("#charts figure", has_text="my.txt").get_by_text("floor").count() == 0
        shown.get_by_label("Metric").select_option("train/lr")  # does not depend on the text
        shown.locator("#charts figure").nth(1).wait_for(state="detached")


@pytest.mark.parametrize("floors", [(0.2, 0.3), (None, None)])
def test_runs_validated_on_different_parts_of_a_text_have_charts_of_their_own(
    browser: Browser, page: Page, outputs: Path, floors: tuple[float | None, float | None]
) -> None:
    for name, floor, limit in zip(("long", "short", "same"), (*floors, floors[1]), (60_000, 2000, 2000), strict=True):
        choose(make_run(outputs, name, floor_bpb=floor), train__val_tokens=limit)
    address = urllib.parse.urlencode({"shown": json.dumps(["long", "short", "same"])})
    with opened(browser, f"{page.url}/runs#{address}") as shown:
        shown.locator("#charts figure").nth(1).wait_for()
        text = "stories, 0.2 MB, validated on at most"
        captions = [f"{text} 2,000 tokens", f"{text} 60,000 tokens"]
        assert sorted(shown.locator("#charts figcaption").all_inner_texts()) == captions
        values = shown.locator("#charts figure", has_text="60,000").locator(".legend li", has_text="floor")
        assert values.locator("b").all_inner_texts() == ([] if floors[0] is None else ["0.2000"])
        assert "train.val_tokens" in shown.locator("#chart-note").inner_text()
        shown.get_by_label("Metric").select_option("train/loss")
        shown.locator("#charts figure").nth(1).wait_for(state="detached")


def test_a_running_run_opens_on_its_training_loss(browser: Browser, page: Page, outputs: Path) -> None:
    folder = make_run(outputs, "live", status="running")
    with (
        lock(folder / "lock", lambda: pytest.fail("nobody else trains it")),
        opened(browser, f"{page.url}/runs") as shown,
    ):
        shown.wait_for_selector("#charts canvas")
        assert shown.get_by_label("Metric").input_value() == "train/loss"


def markup(field: str) -> str:
    return f"<img src=x onerror=alert('{field}')>"


def test_markup_in_a_run_is_shown_as_text(browser: Browser, page: Page, outputs: Path) -> None:
    shown_fields = ("setting", "override", "failure", "status", "metric", "sample", "folder")
    one = outputs / "one"
    choose(one, [markup("override")], data__source="text", data__path=f"/home/{markup('setting')}")
    choose(outputs / "sweeps/lr/0", ["a=1"])
    failed = make_run(outputs, "failed")
    (failed / "job.json").write_text(json.dumps({"overrides": [], "failed": markup("failure")}))
    named = make_run(outputs, "named")
    facts = json.loads((named / "run.json").read_text())
    (named / "run.json").write_text(json.dumps({**facts, "name": markup("name")}))
    make_run(outputs, markup("folder"), status=markup("status"))
    with (one / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 31, "tokens": 1, markup("metric"): 1.0}) + "\n")
    (one / "samples.md").write_text(f"## Step 10 · loss 0.4\n\nA {markup('sample')}\n\n")
    with opened(browser, f"{page.url}/runs#sample=%22one%22") as shown:
        shown.on("dialog", lambda dialog: pytest.fail(dialog.message))
        _tick_all_runs(shown)
        shown.wait_for_selector("#charts canvas")
        shown.get_by_text(named.name).first.wait_for(state="attached")  # a run has the name of its folder
        for field in shown_fields:
            shown.get_by_text(markup(field)).first.wait_for(state="attached")
        assert shown.locator("img").count() == 0


def test_metrics_may_have_any_name(browser: Browser, page: Page, outputs: Path) -> None:
    names = ["__proto__/a", "constructor/b", "/c"]
    with (outputs / "one" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 31, "tokens": 1, **dict.fromkeys(names, 1.0)}) + "\n")
    with opened(browser, f"{page.url}/runs#shown=[%22one%22]") as shown:
        shown.wait_for_selector("#charts canvas")
        for name in names:
            shown.get_by_label("Metric").select_option(name)


def test_an_address_that_somebody_has_changed_opens_the_page(browser: Browser, page: Page) -> None:
    with opened(browser, f"{page.url}/runs") as shown:
        for change in ("shown=5", "x=%22y%22", "filter=3", "smooth={}", "sort=null", "metric=[]", "__proto__=1", "%%"):
            shown.goto("about:blank")  # an address that differs after the # only would not load the page again
            shown.goto(f"{page.url}/runs#{change}")
            shown.wait_for_selector("#charts canvas")
            assert shown.locator("#trouble").is_hidden(), change


HOSTILE = {
    "nested": b"[" * 200_000 + b"]" * 200_000,
    "huge": b'{"step": 1' + b"0" * 400 + b"}",
    "overrides": b'{"overrides": 3}',
    "text": b'"x"',
    "status": b'{"status": ["finished"], "resolved": 7, "floor_bpb": "low"}',
}


@pytest.mark.parametrize("name", ["run.json", "job.json", "config.json", "model/config.json", "metrics.jsonl"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_run_is_a_row_with_its_fault_and_the_others_are_shown(
    page: Page, outputs: Path, name: str, case: str
) -> None:
    broken = make_run(outputs, "broken")
    (broken / name).parent.mkdir(exist_ok=True)
    (broken / name).write_bytes(HOSTILE[case] + b"\n")
    rows = {row["id"]: row for row in page.json("/api/runs")["runs"]}
    assert {"broken", "one"} <= rows.keys()
    harmless = {("job.json", "huge"), ("job.json", "status"), ("run.json", "overrides")}  # objects without its keys
    assert rows["broken"]["notes"] or (name, case) in harmless
    assert not any("unreadable" in note or "damaged" in note for note in rows["one"]["notes"])
    assert rows["broken"]["status"] != "killed" or (name, case) in harmless


@pytest.mark.parametrize(
    "name", ["run.json", "metrics.jsonl", "train.log", "lock", "report.html", "samples.md", "samples.jsonl"]
)
def test_links_in_a_run_folder_show_nothing_of_where_they_lead(page: Page, outputs: Path, name: str) -> None:
    secret = outputs.parent / "secret"
    secret.write_text('{"name": "nobody may see", "step": 77}\n## Step 1\nnobody may see\n')
    broken = make_run(outputs, "linked")
    (broken / name).unlink(missing_ok=True)
    (broken / name).symlink_to(secret)
    assert "one" in {row["id"] for row in page.json("/api/runs")["runs"]}
    for path in ("/api/runs", "/api/samples?run=linked", "/report?run=linked", "/api/curve?run=linked&key=step"):
        assert b"nobody may see" not in page.get(path)[1], path


def test_half_sent_requests_and_a_crowd_leave_the_page_usable(page: Page) -> None:
    import socket

    with contextlib.ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=PATIENCE))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: local")
        assert threading.active_count() < 100
        answers = []
        for _ in range(50):
            with (
                contextlib.suppress(ConnectionError),
                socket.create_connection(("127.0.0.1", page.port), PATIENCE) as c,
            ):
                c.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answers.append(c.recv(100))  # an answer or a refusal, at once: nobody waits for the half-sent ones
    status, end = 0, time.monotonic() + PATIENCE
    while status != 200 and time.monotonic() < end:
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            status = page.get("/api/runs")[0]
    assert status == 200
