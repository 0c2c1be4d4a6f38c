"""Many runs from one file, compared honestly."""
