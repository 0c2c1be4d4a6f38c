"""Describe datasets, build corpora, benchmark the build."""
