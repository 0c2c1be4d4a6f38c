"""Raw picture sources to a dataset directory; `python -m data_prep.build` runs it all."""
