"""Benchmarks: each prints the figures that the README quotes; raw output lies in bench/results."""
