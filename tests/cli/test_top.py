"""`modelnet top`: what is drawn fits, keys do what they say, and the terminal is as it was afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from modelnet.cli.screen import SORTS, Screen
from modelnet.watch.counters import Counters
from modelnet.watch.view import View
from tests.cli.conftest import MODELNET, ROOT, Run
from tests.cli.test_stream import final
from tests.watch.test_view import T0, beat, card, transcript


def busy_view(workers: int = 40) -> View:
    """A view with more than a terminal shows."""
    view = View(lost_after_s=3.0, now=T0)
    for n in range(workers):
        view.card(card(f"worker-with-quite-a-long-name-{n}"), T0)
        view.beat(beat(f"worker-with-quite-a-long-name-{n}", running=n % 3), T0)
    for n in range(30):
        view.transcript(transcript(f"t{n}"), T0)
        view.entry("d", f"t{n}", final(task=f"t{n}", capability="text.upper"), T0)
    view.counters(Counters(0, 0, 0, 0, 0, 0), T0)
    view.counters(Counters(tasks=20, open=1, auctions=20, entries=40, events=9, dead_letters=0), T0 + 2)
    return view


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (200, 60), (80, 8)])
@pytest.mark.parametrize("workers", [0, 3, 400])
def test_it_fits(width: int, height: int, workers: int) -> None:
    lines = Screen().draw(busy_view(workers).snapshot(), width, height).plain.split("\n")
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width
    assert f"{workers} workers" in lines[1]


def test_each_list_has_its_place_on_a_small_terminal() -> None:
    drawn = Screen().draw(busy_view().snapshot(), 80, 24).plain
    assert "worker-with-" in drawn
    assert drawn.count("w0 for 6") >= 3
    assert drawn.count("completed") >= 3


def test_keys_sort_filter_pause_and_quit() -> None:
    view, screen = busy_view(5), Screen()
    assert screen.sort == "busy"
    for _ in SORTS:
        screen.key("s")
        screen.draw(view.snapshot(), 80, 24)
    assert screen.sort == "busy"
    for key in ("/", "q", "\x7f", "n", "a", "m", "e", "-", "3", "\r"):
        screen.key(key)
    assert (screen.filter, screen.done) == ("name-3", False)
    drawn = screen.draw(view.snapshot(), 120, 24).plain
    assert "name-3" in drawn
    assert "name-2" not in drawn
    screen.key("\x1b")
    assert screen.filter == ""
    screen.draw(view.snapshot(), 80, 24)
    screen.key("p")
    view.beat(beat("worker-with-quite-a-long-name-1", leaving=True), T0)
    drawn = screen.draw(view.snapshot(), 80, 24).plain
    assert "PAUSED" in drawn
    assert "left" not in drawn
    screen.key("p")
    assert "left" in screen.draw(view.snapshot(), 80, 24).plain
    screen.key("q")
    assert screen.done


def test_what_is_away_is_said() -> None:
    view = busy_view(1)
    view.note("ledger", "Redis is away")
    assert "ledger: Redis is away" in Screen().draw(view.snapshot(), 80, 24).plain


def test_a_snapshot_for_scripts(modelnet: Run) -> None:
    modelnet("submit", "text.upper", "-i", '{"text": "x"}', "--id", "top-one")
    done = modelnet("top", "--json")
    assert done.returncode == 0
    found: dict[str, Any] = json.loads(done.stdout)
    assert {"acme-upper", "awkward", "calculator"} <= {row["id"] for row in found["workers"]["put"]}
    assert any(row["task"] == "top-one" and row["winner"] == "acme-upper" for row in found["auctions"]["put"])
    assert found["head"]["tasks_s"] is not None
    assert "acme-upper" in modelnet("top", "--once", "--filter", "acme").stdout


def test_wrong_usage_is_told(modelnet: Run) -> None:
    done = modelnet("top", "--sort", "beauty")
    assert done.returncode == 2
    assert "'beauty' is no order" in done.stderr


class Terminal:
    """A pseudo-terminal of 80 by 24 with `top` on it."""

    def __init__(self, env: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [*MODELNET, "top"],
            cwd=ROOT,
            env={**os.environ, **env, "TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        self._slave = slave
        self.shown = b""

    @property
    def mode(self) -> list[Any]:
        """How the terminal is set."""
        return termios.tcgetattr(self._slave)

    def until(self, text: bytes, patience_s: float = 20.0) -> None:
        """Read until this has been shown."""
        end = time.monotonic() + patience_s
        while text not in self.shown:
            left = end - time.monotonic()
            assert left > 0, self.shown[-2000:]
            if select.select([self.master], [], [], left)[0]:
                self.shown += os.read(self.master, 65536)

    def press(self, keys: bytes) -> None:
        """Type."""
        self.shown = b""
        os.write(self.master, keys)

    def close(self) -> None:
        """Let go of both ends."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)


@pytest.fixture
def terminal(network: dict[str, str]) -> Iterator[Terminal]:
    """`top` in a terminal."""
    found = Terminal(network)
    try:
        yield found
    finally:
        found.close()


def test_a_key_quits_and_the_terminal_is_as_it_was(terminal: Terminal) -> None:
    terminal.until(b"acme-upper")
    terminal.press(b"s")
    terminal.until(b"sort: name")
    terminal.press(b"/zzz\r")
    terminal.until(b"no worker fits")
    terminal.press(b"q")
    terminal.until(b"\x1b[?1049l")
    assert terminal.process.wait(20) == 0
    assert terminal.mode == terminal.before


def test_ctrl_c_restores_the_terminal(terminal: Terminal) -> None:
    terminal.until(b"acme-upper")
    terminal.process.send_signal(signal.SIGINT)
    terminal.until(b"\x1b[?1049l")
    assert terminal.process.wait(20) == 130
    assert terminal.mode == terminal.before
    assert b"Traceback" not in terminal.shown
