"""Bridges: the records of a broker's log become batches, exactly once.

A record's place in the broker's log is its sequence number in ours: nothing is kept anywhere else, and nothing is committed
to the broker. `records` reads what a record says, `lane` sends those of one partition, `bridge` is the loop around them;
`kafka` and `nats` fetch.
"""
