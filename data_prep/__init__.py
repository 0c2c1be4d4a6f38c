"""From raw image sources to a dataset directory."""
