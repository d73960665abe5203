"""Figures and the self-contained HTML report, from the files of a run folder. No torch."""
