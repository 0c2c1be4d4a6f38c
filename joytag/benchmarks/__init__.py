"""Cost, measured side by side with a plain reference."""
