"""Additions to the reactor: blocking functions in threads, backoff, coalesced calls, a monotonic clock."""
