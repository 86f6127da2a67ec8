"""Exactly once: attempts, leases, records and retries of jobs."""
