"""The documentation; `streamcl.docs.reference` makes the part of it that the code says already."""
