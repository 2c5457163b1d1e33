"""Benchmarks against spead2 and against floors, on the same traffic in one run."""
