"""Rate limits: what was sent in the last minute, and what a server says of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet.engines.limits import MINUTE_S, RateLimits, duration_s, retry_after_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("7", 7), ("0.25", 0.25), (" 2S ", 2)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "nan", "inf", "-1", "1d", "1s?", "Tue", "9" * 400])
def test_what_is_no_duration(text: str) -> None:
    assert duration_s(text) is None


def test_retry_after_may_be_a_date() -> None:
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", 1445412480.0 - 90) == 90
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", 1445412480.0 + 90) == 0
    assert retry_after_s("soon", 0.0) is None


@given(
    requests=st.integers(1, 5),
    tokens=st.integers(10, 100),
    asked=st.lists(st.tuples(st.floats(0, 40), st.integers(1, 120)), max_size=40),
)
def test_no_minute_has_more_than_its_limit(requests: int, tokens: int, asked: list[tuple[float, int]]) -> None:
    limits, now = RateLimits(requests, tokens), 0.0
    sent: list[tuple[float, int]] = []
    for pause, size in asked:
        now += pause
        wait = limits.wait_s(size, now)
        if wait == 0:
            limits.send(size, now)
            sent.append((now, size))
        else:
            assert wait < 1e-6 or limits.wait_s(size, now + wait * 0.99) > 0
            now += wait + 1e-9
            assert limits.wait_s(size, now) == 0
    for at, size in sent:
        minute = [s for t, s in sent if at - MINUTE_S < t <= at]
        assert len(minute) <= requests
        assert sum(minute) <= max(tokens, size)


def test_what_a_request_has_not_used_is_free_again() -> None:
    limits = RateLimits(tokens_per_minute=100)
    sent = limits.send(100, 0.0)
    assert limits.wait_s(50, 1.0) == 59.0
    sent.tokens = 20
    assert limits.wait_s(50, 1.0) == 0.0


def test_a_429_is_obeyed_and_without_a_time_waits_longer_each_time() -> None:
    limits = RateLimits()
    limits.answered(429, {"retry-after": "7"}, 0.0)
    assert limits.wait_s(1, 0.0) == 7.0
    limits.answered(200, {}, 7.0)
    waits = []
    for _ in range(8):
        now = 100.0
        limits.answered(429, {"retry-after": "whenever"}, now)
        waits.append(limits.wait_s(1, now))
    assert waits[:3] == [1.0, 2.0, 4.0]
    assert waits[-1] == 60.0
    limits.answered(200, {}, 200.0)
    limits.answered(503, {}, 200.0)
    assert limits.wait_s(1, 200.0) == 1.0


def test_a_server_that_says_nothing_is_left_is_believed() -> None:
    limits = RateLimits()
    limits.answered(200, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "3s"}, 10.0)
    assert limits.wait_s(1, 10.0) == 3.0
    assert limits.wait_s(1, 13.0) == 0.0
    limits.answered(200, {"x-ratelimit-remaining-tokens": "500", "x-ratelimit-reset-tokens": "1m0s"}, 20.0)
    assert limits.wait_s(500, 20.0) == 0.0
    assert limits.wait_s(501, 20.0) == 60.0
    limits.send(300, 20.0)
    assert limits.wait_s(300, 21.0) == 59.0
    assert limits.wait_s(300, 80.0) == 0.0
