import io
import json
import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from aent_verl.runs.worker_reports import banner
from aent_verl.viewing import progress
from aent_verl.viewing.progress import CountDisplay, Display, TrainingDisplay

REPORT = {
    "rank": 0,
    "method": "aent",
    "functional": "clamped(clamp_p=0.33)",
    "controller": "BandController(init=0.01)",
    "coefficient": 0.01,
    "device": "cpu",
}
BANNER = (
    "entropy control active on 1 rank(s): method aent, functional clamped(clamp_p=0.33), "
    "controller BandController(init=0.01), coefficient 0.01, device cpu"
)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The display's clock stands still unless a test moves it."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def training(step, coefficient=0.01, *, entropy=0.5, side=0, **more):
    data = {
        "critic/score/mean": 0.25,
        "aent/entropy": entropy,
        "aent/entropy_full": 0.9,
        "aent/coefficient": coefficient,
        "aent/band_side": side,
        "timing_s/step": 10.0,
        "response_length/mean": 5.25,
    }
    return step, data | more


class Bench:
    def __init__(self, folder, *, total=40, terminal=False, environment=None):
        self.folder = folder
        self.file = Terminal() if terminal else io.StringIO()
        environment = {"TERM": "xterm"} if environment is None else environment
        self.console = Console(file=self.file, width=120, height=30, _environ=environment)
        self.display = TrainingDisplay(
            self.console,
            total,
            folder / "metrics.jsonl",
            folder / "report.json",
            folder / "train.log",
            poll_seconds=0.01,
        )

    def write(self, *steps):
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            for step, data in steps:
                file.write(json.dumps({"step": step, "data": data}) + "\n")

    def report(self, text=None):
        (self.folder / "report.json").write_text(json.dumps([REPORT]) if text is None else text)

    def shown(self):
        return self.file.getvalue()

    def wait_for(self, text):
        deadline = time.monotonic() + 5
        while text not in self.shown():
            assert time.monotonic() < deadline, f"{text!r} not in {self.shown()[-2000:]!r}"
            time.sleep(0.005)


def display_threads():
    return [thread for thread in threading.enumerate() if thread.name == "aent-verl-progress"]


def test_plain_lines(tmp_path, clock):
    bench = Bench(tmp_path)
    with bench.display:
        bench.wait_for("starting Ray")
        bench.report()
        bench.wait_for("entropy control")
        bench.write((0, {"val-core/x/acc/mean@4": 0.125}), training(1, entropy=0.7, side=1))
        bench.write(training(2, 0.02), training(3, 0.0005, entropy=0.3, side=-1), training(4, 0.0005))
        bench.write(training(40, **{"val-core/x/acc/mean@4": 0.5}))
    assert bench.shown().splitlines() == [
        "starting Ray, workers and vLLM (about two minutes on a laptop) ...",
        BANNER,
        " step reward valid.     entropy   full  coefficient tokens s/step        left",
        " 0/40      -  0.125           -      -            -      -      -           -",
        " 1/40  0.250      -  high 0.700  0.900    0.01000 →    5.2   10.0  6 min 30 s",
        " 2/40  0.250      -       0.500  0.900    0.02000 ↑    5.2   10.0  6 min 20 s",
        " 3/40  0.250      -   low 0.300  0.900  5.000e-04 ↓    5.2   10.0  6 min 10 s",
        " 4/40  0.250      -       0.500  0.900  5.000e-04 →    5.2   10.0       6 min",
        "40/40  0.250  0.500       0.500  0.900    0.01000 ↑    5.2   10.0         0 s",
        "finished: step 40 of 40, validation accuracy 0.125 (step 0) -> 0.500 (step 40), "
        "entropy 0.700 (step 1) -> 0.500 (step 40) nats, coefficient 0.01000, time 0 s",
    ]


def test_plain_header_repeats_and_lines_keep_their_width(tmp_path):
    bench = Bench(tmp_path, total=2000)
    with bench.display:
        bench.write(*(training(step) for step in range(1980, 2001)), *(training(step) for step in range(30)))
    lines = bench.shown().splitlines()[1:-1]
    assert [number for number, line in enumerate(lines) if "reward" in line] == [0, 26, 52]
    assert len({len(line) for line in lines}) == 1


def test_missing_and_null_metrics_are_shown_as_such(tmp_path, clock):
    bench = Bench(tmp_path)
    nothing = {"critic/score/mean": None, "aent/entropy": None, "timing_s/step": None, "val-core/x/acc/mean@4": None}
    with bench.display:
        bench.write((1, nothing))
    assert bench.shown().splitlines()[2].split() == ["1/40", "nan", "nan", "nan", "-", "-", "-", "nan", "-"]
    assert bench.shown().splitlines()[-1] == "finished: step 1 of 40, time 0 s"
    assert not (tmp_path / "train.log").exists()


def test_an_unknown_last_step(tmp_path):
    bench = Bench(tmp_path, total=None)
    with bench.display:
        bench.write(training(7))
    step, *_, left = bench.shown().splitlines()[2].split()
    assert (step, left) == ("7", "-")
    assert bench.shown().splitlines()[-1].startswith("finished: step 7, entropy")


def test_time_left_is_the_median_of_the_recent_steps(tmp_path, clock):
    bench = Bench(tmp_path, total=33)
    with bench.display:
        bench.write(*(training(step, **{"timing_s/step": 1000.0}) for step in range(1, 8)))
        bench.write(*(training(step, **{"timing_s/step": 2.0}) for step in range(8, 14)))
    assert bench.shown().splitlines()[-2].endswith("  40 s")


def test_time_left_counts_what_lies_between_the_steps_but_not_the_start(tmp_path, clock):
    bench = Bench(tmp_path, total=11)
    with bench.display:
        clock.now += 120
        bench.write(training(1))
        bench.wait_for("1/11")
        clock.now += 30
        bench.write(training(2))
        bench.wait_for("2/11")
        clock.now += 30
        bench.write(training(3))
    assert [line[-12:].strip() for line in bench.shown().splitlines()[2:5]] == ["1 min 40 s", "3 min", "4 min"]
    assert bench.shown().endswith("time 3 min\n")


def test_time_left_counts_down_within_a_step(tmp_path, clock):
    bench = Bench(tmp_path, total=2, terminal=True)
    with bench.display:
        bench.write(training(1, **{"timing_s/step": 3700.0}))
        bench.wait_for("0 s so far, 1 h 2 min left")
        clock.now += 70
        bench.wait_for("1 min 10 s so far, 1 h left")
        clock.now += 7000
        bench.wait_for("1 h 58 min so far, 0 s left")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_dumb_terminal_gets_plain_lines(tmp_path, environment):
    bench = Bench(tmp_path, terminal=True, environment=environment)
    with bench.display:
        bench.write(training(1))
    assert "\x1b" not in bench.shown()
    assert bench.shown().splitlines()[2].startswith(" 1/40  0.250      -       0.500")


def test_a_log_with_forced_colours_is_not_a_terminal(tmp_path):
    bench = Bench(tmp_path, environment={"FORCE_COLOR": "1", "TERM": "xterm"})
    with bench.display:
        bench.write(training(1))
    assert "\x1b[2K" not in bench.shown()
    assert len(bench.shown().splitlines()) == 4


def test_arrows_are_ascii_where_the_encoding_is(tmp_path):
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    with TrainingDisplay(console, 3, tmp_path / "metrics.jsonl", tmp_path / "r", tmp_path / "log", poll_seconds=0.01):
        Bench.write(Bench(tmp_path), training(1), training(2, 0.02), training(3))
    assert [line[50] for line in raw.getvalue().decode("ascii").splitlines()[2:5]] == ["=", "^", "v"]


def test_live_table(tmp_path, clock):
    bench = Bench(tmp_path, terminal=True)
    with bench.display:
        bench.wait_for("starting Ray, workers and vLLM (about two minutes on a laptop)  0 s")
        bench.report()
        bench.wait_for(BANNER)
        bench.wait_for("workers are up: validation before training, first step  0 s")
        bench.write((0, {"val-core/x/acc/mean@4": 0.125}))
        bench.wait_for("first training step  0 s")
        bench.write(*(training(step, step / 100) for step in range(1, 13)))
        bench.wait_for("validation accuracy 0.125 (step 0)")
        bench.wait_for("step 12 of 40")
    last_frame = bench.shown().rpartition("\x1b[2K")[2]
    rows = [line for line in last_frame.splitlines() if "/40" in line]
    assert [row.count("↑") for row in rows] == [1] * 8
    assert "5/40" in rows[0]
    assert "12/40" in rows[-1]
    assert "10.0" in rows[-1]
    assert "min" not in rows[-1], "the line under the table says what is left"
    assert "0 s so far, 4 min 40 s left" in last_frame
    assert "finished: step 12 of 40" in last_frame
    assert last_frame.count("\x1b[?25h") == 1, "the cursor is shown again"


def test_the_report_of_an_earlier_start_is_not_shown(tmp_path):
    bench = Bench(tmp_path)
    bench.report()
    with bench.display:
        bench.write(training(1))
        bench.wait_for("1/40")
        assert "active" not in bench.shown()
        bench.report(json.dumps([REPORT, REPORT | {"rank": 1}, {"rank": 0, "role": "critic"}]))
        bench.wait_for("active on 2 rank(s)")


def test_a_half_written_report_is_read_again(tmp_path):
    bench = Bench(tmp_path)
    with bench.display:
        bench.report('[{"method": "ae')
        time.sleep(0.05)
        bench.report()
        bench.wait_for(BANNER)
        time.sleep(0.05)
    assert bench.shown().count("active on") == 1
    assert not (tmp_path / "train.log").exists()


def test_banner_without_an_actor():
    assert banner([{"rank": 0}]) == "no worker reports entropy control"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_thread_ends_and_the_error_passes(tmp_path, error, terminal):
    bench = Bench(tmp_path, terminal=terminal)
    bench.write(training(1))
    running = []

    def train():
        with bench.display:
            running.extend(display_threads())
            raise error

    with pytest.raises(error):
        train()
    assert len(running) == 1
    assert not display_threads()
    assert f"stopped by {error.__name__}: step 1 of 40" in bench.shown()


def test_a_run_that_dies_before_its_first_step(tmp_path, clock):
    bench = Bench(tmp_path)
    with pytest.raises(RuntimeError), bench.display:
        raise RuntimeError
    assert bench.shown().splitlines()[-1] == "stopped by RuntimeError: no step finished, time 0 s"


def test_steps_written_just_before_the_end_are_shown(tmp_path):
    bench = Bench(tmp_path)
    bench.display._poll_seconds = 60
    start = time.monotonic()
    with bench.display:
        bench.write(training(40))
    assert "40/40" in bench.shown()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("terminal", [False, True])
def test_an_error_of_the_display_is_logged_once_and_goes_no_further(tmp_path, terminal):
    bench = Bench(tmp_path, terminal=terminal)
    bench.file.write = lambda text: 1 / 0
    with bench.display:
        for step in range(1, 5):
            bench.write(training(step))
            time.sleep(0.03)
    log = (tmp_path / "train.log").read_text()
    assert log.count("Traceback") == 1
    assert "ZeroDivisionError" in log
    assert not display_threads()


def test_a_report_of_another_form_costs_the_banner_only(tmp_path):
    bench = Bench(tmp_path)
    with bench.display:
        bench.report("[1]")
        time.sleep(0.05)
        bench.write(training(1))
    assert " 1/40" in bench.shown()
    assert (tmp_path / "train.log").read_text().count("Traceback") == 1


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_display_without_a_log_goes_no_further(tmp_path):
    bench = Bench(tmp_path)
    bench.display._log_path = tmp_path / "missing" / "train.log"
    bench.file.write = lambda text: 1 / 0
    with bench.display:
        pass
    assert not display_threads()


def test_it_looks_only_as_often_as_it_is_told(tmp_path):
    bench = Bench(tmp_path)
    bench.display._poll_seconds = 0.05
    looks = []
    bench.display._look = lambda: looks.append(1)
    start = time.monotonic()
    with bench.display:
        time.sleep(0.3)
    assert 2 <= len(looks) <= (time.monotonic() - start) / 0.05 + 1


def test_a_count_says_a_line_a_tenth_and_the_time_left(clock):
    file = io.StringIO()
    with CountDisplay(Console(file=file, width=120), 40, "responses") as display:
        for _ in range(8):
            clock.now += 10
            display.advance()
    assert file.getvalue().splitlines() == ["4 of 40 responses, 6 min left", "8 of 40 responses, 5 min 20 s left"]


def test_a_count_has_a_bar_on_a_terminal(clock):
    file = Terminal()
    with CountDisplay(Console(file=file, width=120, _environ={"TERM": "xterm"}), 4, "responses") as display:
        clock.now += 30
        display.advance()
        display.refresh()
    assert "0 of 4 responses, 0 s so far" in file.getvalue()
    last_frame = file.getvalue().rpartition("\x1b[2K")[2]
    assert "1 of 4 responses, 1 min 30 s left, 30 s so far" in last_frame
    assert last_frame.count("\x1b[?25h") == 1, "the cursor is shown again"


class Beating(Display):
    """Something to draw, and a heartbeat."""

    said = "alive"

    def render(self):
        return "drawn"

    def heartbeat(self):
        return self.said


def test_the_heartbeat_comes_after_long_silence_only_and_not_on_a_terminal(clock):
    file = io.StringIO()
    with Beating(Console(file=file)) as display:
        for step in (200, 200, 200, 200):
            clock.now += step
            display.refresh()
        display.say("news")
        clock.now += 299
        display.refresh()
        display.said = ""
        clock.now += 299
        display.refresh()
    assert file.getvalue().splitlines() == ["alive", "alive", "news"]
    terminal = Terminal()
    with Beating(Console(file=terminal, _environ={"TERM": "xterm"})) as display:
        clock.now += 1000
        display.refresh()
    assert "alive" not in terminal.getvalue()


@pytest.mark.parametrize("shared", [True, False])
def test_what_else_is_printed_goes_above_only_where_it_goes_to_the_same_place(monkeypatch, shared):
    ours, others = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", ours if shared else others)
    with Beating(Console(file=ours, _environ={"TERM": "xterm"})):
        print("a warning")
        # Drawn again under it.
        assert ("drawn" in ours.getvalue().partition("a warning")[2]) == shared
    assert ("a warning" in ours.getvalue(), "a warning" in others.getvalue()) == (shared, not shared)
