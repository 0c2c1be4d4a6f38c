"""Scores and labels to findings."""
