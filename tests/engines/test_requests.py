"""Which requests of an engine run, and which ran just now."""

from modelnet.engines.requests import Requests


def test_a_request_that_has_just_ended_may_still_be_counted_elsewhere() -> None:
    requests = Requests[str]()
    with requests.one("a"):
        assert (requests.count, requests.lately(60)) == (1, 1)
        with requests.one("b"):
            assert requests.lately(0) == 2
    assert requests.count == 0
    assert requests.lately(60) == 2
    assert requests.lately(-60) == 0
