"""The kinds of source: where images and their tags come from."""
