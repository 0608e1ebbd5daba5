"""Fault campaigns: what the daemon's promises are tested with. See `campaigns`."""
