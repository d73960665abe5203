"""Trains M4oE: ``deepspeed train.py --ds_config ds_configs/zero2.json``; also under ``srun`` and plain ``python``."""

from m4oe_ds.entry import leave, main

if __name__ == "__main__":
    leave(main())
