"""From a release to the files that other programs load."""
