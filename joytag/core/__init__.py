"""Settings, errors, files, processes and devices: code that knows nothing of images."""
