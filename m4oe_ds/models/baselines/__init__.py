"""The systems the paper compares with, one module each, on one base: encoders, their own fusion or an MToE, heads."""
