"""Contracts: what the annotations of exposed methods say, for checks, descriptions and typed clients."""
