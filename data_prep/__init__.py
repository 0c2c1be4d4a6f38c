"""Raw image sources to a dataset directory; `joytag build` runs it all."""
