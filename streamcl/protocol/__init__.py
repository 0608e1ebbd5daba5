"""The wire protocol without I/O: frames in, typed messages out; sequences, credit, duplicates."""
