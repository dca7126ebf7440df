"""Listening sockets that processes can share, and ports that accept from them."""
