"""The API: what people, scripts and monitoring see of a fleet, over HTTP."""
