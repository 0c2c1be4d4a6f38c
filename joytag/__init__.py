"""JoyTag: train, evaluate and use multi-label image taggers."""
