"""The life of a task: score, learn, consolidate. Files come in through storage; no sockets."""
