"""The paper's tables and figures, made again by one command from trainings to an index of files."""
