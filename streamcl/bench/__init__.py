"""Reproducible runs that a user can repeat: the demo and the benchmarks, all through a real daemon."""
