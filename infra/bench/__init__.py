"""Benchmarks: each compares its contenders in one run, interleaved, because machines differ and are noisy."""
