"""From a dataset directory to batches of images and labels."""
