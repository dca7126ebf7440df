"""Who calls: keys, signatures of requests, and the callers that a method allows."""
