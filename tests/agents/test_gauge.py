"""A task's events as MCP progress: it only grows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelnet.agents.mcp_tools import Gauge
from modelnet.messages import Delta, Progress, Reset

STAMP = {"task": "t", "attempt": 1, "worker": "w", "number": 1}

EVENT = st.one_of(
    st.builds(Delta, text=st.text(min_size=1, max_size=3), **{k: st.just(v) for k, v in STAMP.items()}),
    st.builds(
        Progress,
        fraction=st.none() | st.floats(0, 1),
        note=st.none() | st.just("note"),
        **{k: st.just(v) for k, v in STAMP.items()},
    ),
    st.builds(Reset, to=st.just(0), **{k: st.just(v) for k, v in STAMP.items()}),
)


@given(st.lists(EVENT, max_size=30))
def test_progress_increases_with_each_notification(events: list[Delta | Progress | Reset]) -> None:
    gauge = Gauge()
    steps = [step for event in events if (step := gauge.read(event)) is not None]
    assert len(steps) == len(events)
    values = [value for value, _, _ in steps]
    assert all(b > a for a, b in zip([0.0, *values], values, strict=False))
    assert len({total for _, total, _ in steps}) <= 1


def test_fractions_are_passed_on_as_they_are() -> None:
    gauge = Gauge()
    assert gauge.read(Progress(**STAMP, fraction=0.25, note="reading")) == (0.25, 1.0, "reading")
    assert gauge.read(Progress(**STAMP, fraction=0.75)) == (0.75, 1.0, None)


def test_text_is_counted_and_passed_on() -> None:
    gauge = Gauge()
    assert gauge.read(Delta(**STAMP, text="one")) == (1.0, None, "one")
    assert gauge.read(Progress(**STAMP, fraction=0.5, note="half")) == (2.0, None, "50%: half")
    assert gauge.read(Delta(**STAMP, text="two")) == (3.0, None, "two")
