"""Runs: their claims, numbers, summaries, and what none of them needs any more."""
