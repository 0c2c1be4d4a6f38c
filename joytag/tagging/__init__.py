"""Images to tags on disk."""
