"""The market's state machines through random faults: `python -m tests.simulate --seeds 1000`."""
