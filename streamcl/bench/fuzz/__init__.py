"""Hostile messages, by the million: against the protocol without sockets, and through real ones."""
