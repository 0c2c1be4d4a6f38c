"""Findings to pages, tables and plots."""
