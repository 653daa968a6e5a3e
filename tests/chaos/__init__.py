"""A campaign of faults against a whole network of real processes: see docs/reliability.md, "How it is tested"."""
