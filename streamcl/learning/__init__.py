"""The task's life: score, learn, consolidate. Files come in through storage; no sockets."""
