"""The live line: on a real terminal, in a pipe, in a notebook, across threads and processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import nbformat
import papermill
import psutil
import pytest
import tqdm
import tqdm.auto
from pseudo_terminal import HERE, python, screen, states

from cfutils import display, progress
from cfutils.display import State, words

CODE = """
import sys, time, warnings
from cfutils import progress
from cfutils.events import say
with progress.task("03 forgetting analysis"), progress.task("step", total=2, alike=False) as step:
    for seed in range(2):
        with progress.task(f"cfs seed={seed}"), progress.task("tuning", total=10) as advance:
            for i in range(10):
                time.sleep(0.1)
                advance(note=f"target {i}.5")
                if i == 5:
                    print("about to warn", file=sys.stderr)
        say(f"built tuned: cfs seed={seed}")
        step()
say("done")
"""


def state(what: str, total: float | None = None, **values: object) -> State:
    return State(what=what, total=total, **{
        "unit": "", "done": 0.0, "rate": None, "note": "", "begun": 1000.0, "updated": 1000.0, **values,
    })  # fmt: skip


# ---- arithmetic


def test_what_is_left_at_the_measured_speed():
    """55 steps at half a step a second take 110 s; the next one is under way since a second."""
    tuning = state("tuning", 96.0, done=41.0, rate=0.5, updated=1082.0)
    assert tuning.left(1082.0) == 110.0
    assert tuning.left(1083.0) == 109.0
    assert tuning.left(2000.0) == 108.0  # it hangs: never less than what the other 54 take


def test_nothing_is_said_of_what_is_left_without_a_speed_or_a_total():
    assert state("tuning", 96.0).left(1000.0) is None
    assert state("fetching", None, done=5.0, rate=1.0).left(1000.0) is None
    assert state("nothing", 0.0, rate=1.0).left(1000.0) is None


def test_the_speed_is_an_average_in_which_the_newest_weighs_most(monkeypatch):
    """Updates after 2 s and 4 s more: the time of a unit is (0.1 * 4 + 0.9 * 0.1 * 2) / (1 - 0.9^2) = 0.58 / 0.19."""
    clock = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    counter = progress._Counter("tuning", 10, "", 0, True)
    clock[0] = 102.0
    counter.advance()
    assert counter.state().rate == pytest.approx(1 / 2)
    clock[0] = 106.0
    counter.advance()
    assert counter.state().rate == pytest.approx(0.19 / 0.58)
    assert counter.state().left(106.0) == pytest.approx(8 * 0.58 / 0.19)
    counter.close()


def test_what_an_earlier_run_has_done_says_nothing_about_the_speed(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    counter = progress._Counter("tuning", 96, "", 90, True)
    assert counter.state().rate is None
    clock[0] = 110.0
    counter.advance(2)
    assert counter.state().rate == pytest.approx(0.2) and counter.state().left(110.0) == pytest.approx(20)
    counter.close()


def test_before_there_is_an_average_the_speed_is_that_since_the_beginning(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.setattr(time, "time", lambda: clock[0])
    counter = progress._Counter("sampling", 96, "samples", 0, True)
    clock[0] = 100.5
    counter.advance(2.5)
    assert counter.state().rate == 5.0
    counter.close()


def test_units_that_differ_have_no_speed():
    with progress.task("step", total=31, alike=False) as advance:
        advance()
        (own,) = progress._states()
    assert own.rate is None and own.done == 1


# ---- words


def test_nested_tasks_are_one_line():
    tasks = [
        state("03 forgetting analysis"), state("step", 31.0, done=4.0), state("cfs seed=0"),
        state("tuning", 96.0, done=41.0, rate=0.5, note="target 0.412"),
    ]  # fmt: skip
    line = "03 forgetting analysis · cfs seed=0 · tuning 41/96 · 1:50 left · target 0.412 · step 5 of 31"
    assert words(tasks, now=1000.0) == line
    assert words(tasks, now=1000.0, more=1) == line + " · 2 at once"
    assert words(tasks[:2], now=1000.0) == "03 forgetting analysis · step 4/31"
    assert words(tasks[:1], now=1075.0) == "03 forgetting analysis · 1:15"
    done = [state("step", 31.0, done=31.0), state("log")]
    assert words(done, now=1000.0) == "log · 0:00 · step 31 of 31"


def test_units_fractions_and_thousands():
    tasks = [state("sampling", 12000.0, unit="samples", done=1023.4, rate=None)]
    assert words(tasks, now=1000.0) == "sampling 1,023/12,000 samples"


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (60, "03 analysis · cfs · tuning 4/9 · 0:50 left · step 5 of 31"),  # 57 columns, 67 with the note
        (50, "cfs · tuning 4/9 · 0:50 left · step 5 of 31"),
        (40, "tuning 4/9 · 0:50 left · step 5 of 31"),
        (20, "tuning 4/9 · 0:50 le"),
    ],
)
def test_what_does_not_fit_is_left_out_from_the_note_on(width, line):
    inner = state("tuning", 9.0, done=4.0, rate=0.1, note="loss 9.")
    tasks = [state("03 analysis"), state("step", 31.0, done=4.0), state("cfs"), inner]
    assert words(tasks, now=1000.0, width=width) == line


def test_the_width_is_that_of_characters_on_a_screen():
    assert words([state("日本語のモデル")], now=1000.0, width=9) == "日本語の"


def test_a_name_cannot_write_to_the_terminal():
    assert words([state("a\x1b[2J\rb\nc")], now=1000.0) == "a [2J b c · 0:00"


# ---- tasks


def test_tasks_of_all_threads_are_open_together_and_gone_afterwards():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with progress.task("step", total=3):
            inside.set()
            leave.wait(10)

    with pytest.raises(KeyError), progress.task("run"):
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
        with progress.task("inner"):
            assert [one.what for one in progress._states()] == ["run", "inner", "step"]
        leave.set()
        thread.join()
        assert [one.what for one in progress._states()] == ["run"]
        raise KeyError
    assert progress._states() == [] and progress._display is None
    assert not any(t.name == "cfutils-progress" for t in threading.enumerate())


@pytest.mark.parametrize("bar", [tqdm.tqdm, tqdm.auto.tqdm, tqdm.trange])
def test_bars_of_other_libraries_count_and_are_drawn_only_outside(bar):
    drawn = io.StringIO()
    items = range(3) if bar is not tqdm.trange else 3
    with progress.task("outer"):
        assert list(bar(items, file=drawn)) == [0, 1, 2] and drawn.getvalue() == ""
        with progress.task("inner"):
            pass
        list(bar(items, file=drawn))
        assert drawn.getvalue() == ""
    assert list(bar(items, file=drawn)) == [0, 1, 2] and "3/3" in drawn.getvalue()


def test_a_switch_for_other_bars_leaves_the_count_alone():
    """The suite's kernels have TQDM_DISABLE: what a cell draws itself would stick."""
    code = "import tqdm\nfrom cfutils import progress\nlist(tqdm.tqdm(range(3)))\n"
    code += "with progress.task('x', total=3) as advance:\n advance()\n print(progress._states()[0].done)"
    env = os.environ | {"TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=HERE)
    assert (done.stdout, done.stderr) == ("1.0\n", "")


def test_counting_costs_nothing_that_a_step_would_notice():
    with progress.task("tuning", total=100_000) as advance:
        clock = time.perf_counter()
        for _ in range(100_000):
            advance()
        assert time.perf_counter() - clock < 2  # 20 microseconds each on a busy machine; 0.3 otherwise


# ---- terminal


def test_a_terminal_shows_one_line_and_keeps_what_is_said():
    code, written = python(CODE).end()
    assert code == 0, written
    shown = states(written)
    assert any(line.startswith("03 forgetting analysis · cfs seed=0 · tuning") for line in shown)
    assert any(line.endswith(" · step 2 of 2") and " left · target " in line for line in shown)
    said = ["built tuned: cfs seed=0", "about to warn", "built tuned: cfs seed=1", "done", ""]
    assert screen(written) == ["about to warn", *said]
    assert "\x1b" not in written.replace("\x1b[K", "")  # no colours, whatever NO_COLOR says


def test_the_line_follows_the_width_of_the_window():
    terminal = python(CODE, columns=100)
    before = terminal.until(lambda written: len(states(written)) > 2)
    terminal.resize(40)
    _, written = terminal.end()
    after = states(written[len(before) :])[1:]  # one may be under way
    assert max(map(len, states(before))) > 60 and after and max(map(len, after)) <= 39
    assert any("tuning" in line and "step 2 of 2" in line for line in after)


def test_ctrl_c_leaves_a_clean_terminal():
    terminal = python(CODE)
    terminal.until(lambda written: len(states(written)) > 2)
    terminal.type("\x03")
    code, written = terminal.end()
    assert code in (-signal.SIGINT, 130) and "^C" in written
    rows = [row for row in screen(written) if row != "about to warn"]
    assert rows[0] == "Traceback (most recent call last):" and rows[-2:] == ["KeyboardInterrupt", ""]
    assert not any("left" in row or "^C" in row for row in rows)


def test_half_a_line_is_not_drawn_over():
    code = "import time\nfrom cfutils import progress\nwith progress.task('long'):\n"
    code += " time.sleep(0.6); print('one, ', end='', flush=True); time.sleep(0.6); print('two'); time.sleep(0.6)"
    _, written = python(code).end()
    assert screen(written) == ["one, two", ""] and len(states(written)) >= 2


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_rewrite_gets_plain_lines(term):
    code, written = python(CODE, env={"TERM": term}).end()
    assert code == 0 and "\x1b" not in written and "\r" not in written.replace("\r\n", "")


# ---- pipe


def test_a_pipe_gets_plain_lines_in_order():
    code = "from cfutils import display\ndisplay.PLAIN_EVERY = 0.5, 0.5\n" + CODE
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE)
    lines = done.stdout.splitlines()
    assert done.stderr == "about to warn\nabout to warn\n" and done.stdout.isprintable() is False
    assert all(line.isprintable() for line in lines)
    said = [line for line in lines if not line.startswith("03 ")]
    assert said == ["built tuned: cfs seed=0", "built tuned: cfs seed=1", "done"]
    assert 2 <= len(lines) - len(said) <= 4  # 2 s, a line each second (the thread looks once a second)


def test_a_log_has_few_lines_however_long_it_takes(monkeypatch):
    """Every 10 s up to 200 s, then after a twentieth of the time, and every 10 minutes from 200 minutes on."""
    clock, log = [0.0], io.StringIO()
    monkeypatch.setattr(sys, "stdout", log)
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    plain = display.Plain(list)
    plain.close()
    printed = []
    for second in range(10 * 3600):
        clock[0], before = float(second), log.tell()
        plain.show([state("tuning", 10.0)])
        printed += [second] * (log.tell() > before)
    assert printed[:21] == [*range(10, 201, 10), 210] and 221 in printed
    assert printed[-1] - printed[-2] == 600 and 130 < len(printed) < 160


# ---- processes


CHILD = """
import os, sys, time
from cfutils import progress
with progress.task("cfs seed=0"), progress.task("tuning", total=96, done=40) as advance:
    advance()
    print("up", flush=True)
    time.sleep(60)
"""


def started(code: str) -> subprocess.Popen:
    env = os.environ | display.environment()
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True,
                               cwd=HERE)  # fmt: skip
    assert process.stdout.readline() == "up\n"
    return process


def until(done, seconds=20):
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
    return done()


def test_tasks_of_processes_reach_the_one_that_started_them():
    with progress.task("step", total=31), started(CHILD) as one:
        assert until(lambda: display.others()[0])
        found, more = display.others()
        assert [(s.what, s.total, s.done) for s in found] == [("cfs seed=0", None, 0), ("tuning", 96, 41)] and more == 0
        line = words(progress._states() + found)
        assert line.startswith("cfs seed=0 · tuning 41/96") and line.endswith(" · step 1 of 31")
        with started(CHILD) as two:
            assert until(lambda: display.others()[1] == 1)
            one.kill()  # no time to clean up
            one.wait()
            assert until(lambda: display.others()[1] == 0) and display.others()[0]
            two.kill()
        assert display.others() == ([], 0)


def test_tasks_of_grandchildren_do_too():
    """The kernel of a notebook builds in processes of its own."""
    code = f"import subprocess, sys\nfrom cfutils import progress\nwith progress.task('ratio', total=3):\n" \
           f" child = subprocess.Popen([sys.executable, '-c', {CHILD!r}])\n child.wait()"  # fmt: skip
    with started(code) as kernel:
        assert until(lambda: len(display.others()[0]) == 3)
        assert words(display.others()[0]).endswith(" · ratio 1 of 3")
        own = json.loads(next(display._folder().glob(f"{kernel.pid}.json")).read_text())
        assert own["parent"] == os.getpid()
        for child in psutil.Process(kernel.pid).children():
            child.kill()


# ---- Jupyter


def executed(tmp_path, *cells: str) -> list[list[dict]]:
    """Execute cells by papermill, as anybody might; return their outputs."""
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    node.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    out = tmp_path / "out.ipynb"
    with contextlib.suppress(papermill.PapermillExecutionError):
        papermill.execute_notebook(node, str(out), progress_bar=False, cwd=str(HERE))
    nbformat.validate(done := nbformat.read(out, 4))
    return [cell.outputs for cell in done.cells if cell.cell_type == "code" and not cell.metadata.get("tags")]


def test_no_bar_sticks_in_an_executed_notebook(tmp_path):
    good = CODE.replace("time.sleep(0.1)", "time.sleep(0.2)").replace("file=sys.stderr", "end=''")
    bad = "with progress.task('tuning', total=10):\n    time.sleep(1.5)\n"
    bad += "    print(progress._display._output is not None)\n    raise KeyError"
    outputs = executed(tmp_path, good, bad, "x = 1")
    assert [o.data for o in outputs[0] if o.output_type == "display_data"] == [{}]
    text = "".join(o.text for o in outputs[0] if o.output_type == "stream").replace("about to warn", "")
    assert text == "built tuned: cfs seed=0\nbuilt tuned: cfs seed=1\ndone\n"
    assert [o.output_type for o in outputs[1]] == ["display_data", "stream", "error"]
    assert outputs[1][0].data == {} and outputs[1][1].text == "True\n"
