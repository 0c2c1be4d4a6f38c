"""Kinds of sources: where images and their tags come from."""
