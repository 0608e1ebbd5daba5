"""The processes: serve supervises; ingest, trainer and predictor work. They wire the floors below and decide little."""
