"""Looking into a network while it runs: hooks keep records, pure functions turn them into numbers."""
