"""What a process says of itself: logs, metrics, the flight recorder, and proof that its reactor turns."""
