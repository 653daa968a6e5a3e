"""Prices by the token, from what bidders learn."""

from __future__ import annotations

import pytest

from modelnet.messages import Features
from modelnet.pricing import TokenPrice


def test_a_price_by_the_token() -> None:
    shape = {"object": {"prompt": 19, "max_tokens": {"public": 100}, "n": {"public": 3}}}
    features = Features(input_bytes=301, shape=shape)
    assert TokenPrice(per_task=7)(features) == 7
    assert TokenPrice(per_input_token=0.01)(features) == 2  # 101 tokens, rounded up
    assert TokenPrice(per_input_token=0.1)(features.model_copy(update={"prompt_bytes": 31})) == 2  # 11 tokens
    assert TokenPrice(per_output_token=0.15)(features) == 45
    assert TokenPrice(1, 1, 1)(Features(input_bytes=3, shape={"object": {}})) == 1 + 1 + 256
    with pytest.raises(ValueError, match="too large"):
        TokenPrice(per_output_token=1)(Features(input_bytes=3, shape=None))
