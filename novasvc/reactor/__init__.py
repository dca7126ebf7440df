"""What we add to the reactor: blocking functions in threads, back-off, coalesced calls, monotonic seconds."""
