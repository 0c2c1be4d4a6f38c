"""Speed and memory, measured beside a plain reference."""
