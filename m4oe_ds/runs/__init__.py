"""What a run folder holds and what a run is made of: assembly, weights, state files, evaluation of a finished run."""
