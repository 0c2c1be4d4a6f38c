"""A dataset directory to batches."""
