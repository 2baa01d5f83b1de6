"""Simulators, rendering, policies and the Ray fleet that records episodes into shards."""
