"""Settings, errors, files, processes, devices: what knows nothing of images."""
