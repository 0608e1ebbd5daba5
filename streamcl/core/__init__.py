"""The mathematics of the note (Huszár 2017) on tensors. No files, no sockets, no configuration."""
