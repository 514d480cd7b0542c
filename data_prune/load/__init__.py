"""The kept examples and the user's loader -> batches whose examples are known."""
