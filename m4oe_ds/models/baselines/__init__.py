"""The systems the paper compares with, one module each, on one base: encoders, an own fusion or an MToE, heads."""
