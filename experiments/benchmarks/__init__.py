"""Benchmarks: `python -m experiments.benchmarks` prints tables and writes CSV files and plots."""
