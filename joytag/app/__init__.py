"""The app: tag in the browser, see why, and label the next images."""
