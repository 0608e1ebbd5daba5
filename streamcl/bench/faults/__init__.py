"""Fault campaigns, which test the daemon's promises. See `campaigns`."""
