"""The server side of RPC: from a delivery to the published reply, and what may happen on the way."""
