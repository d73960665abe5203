"""The only place with process groups: launch, topology, exchange of slots, DeepSpeed adapter, reductions."""

import os

import torch

if not torch.cuda.is_available():
    # before deepspeed is imported: it would otherwise probe for devices and print a warning on every rank
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
