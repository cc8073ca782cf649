"""Evaluation: suites run against an endpoint, statistics, the gate."""
