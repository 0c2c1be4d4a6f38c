"""What looks at datasets, makes corpora and measures the build."""
