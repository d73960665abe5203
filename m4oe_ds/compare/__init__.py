"""Every compared system trained and evaluated by the same trainer, and the paper's tables made from the results."""
