"""One reader per archive: its tables in, samples with labels, candidate files and provenance out."""
