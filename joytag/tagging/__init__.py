"""From images to tags on disk."""
