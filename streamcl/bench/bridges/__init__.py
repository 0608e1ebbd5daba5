"""Bridges under kills: brokers as child processes, and what the daemon's log holds in the end."""
