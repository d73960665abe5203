"""``m4oe doctor``: whether a machine or a node of a cluster is fit for training, and what to mend if not."""
