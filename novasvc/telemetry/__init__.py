"""Logs and log files, metrics, the flight recorder, and the detection of reactor stalls."""
