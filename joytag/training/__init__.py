"""A config to a trained model."""
