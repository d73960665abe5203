"""Two runs beside each other: what they were made from, how they learned, and their answers to the same samples."""
