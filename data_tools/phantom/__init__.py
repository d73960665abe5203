"""Synthetic archives in the layout of real ones, with known truth; ``python -m data_tools.phantom``."""
