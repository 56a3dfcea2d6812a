"""Benchmarks: the throughput and latency of leadstream, each compared with a reference in the same run."""
