"""What is on disk: an append-only log, atomic checkpoints, the ledger of tasks. No sockets, no training."""
