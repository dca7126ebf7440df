"""The operator's side of a change of queue type: replace the queues of a running fleet; see docs/protocol.md."""
