"""Listening sockets that processes share, and the servers that accept from them."""
