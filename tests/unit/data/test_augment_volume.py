"""A volume and the mask over it move together, slice by slice alike; a table stays as it is."""

from __future__ import annotations

import torch

from m4oe_ds.data.augment import AugmentOptions, augment
from m4oe_ds.data.schema import Column, ModalitySpec

INPUTS = (
    ModalitySpec("scan", "volume"),
    ModalitySpec("clinic", "table", columns=(Column("age", "number"),)),
    ModalitySpec("photo"),
)
MOVES = AugmentOptions(rotation_degrees=40.0, translation=0.2, scale=0.2, vertical_flip=True, horizontal_flip=True)


def test_a_volume_and_its_mask_move_together() -> None:
    square = torch.zeros(1, 6, 32, 32)
    square[:, 1:5, 4:16, 8:20] = 1.0
    views = {"scan": square.clone(), "clinic": torch.tensor([[0.3, 1.0]]), "photo": square[:, 1].clone()}
    masks = {"lesion": square.clone(), "spot": square[:, 1].clone()}
    owners = {"lesion": "scan", "spot": "photo"}
    for seed in range(5):
        found, moved = augment(views, masks, INPUTS, owners, MOVES, torch.Generator().manual_seed(seed))
        assert torch.equal(found["clinic"], views["clinic"])
        assert not torch.equal(moved["lesion"], square)
        for name, task in (("scan", "lesion"), ("photo", "spot")):
            assert ((found[name] > 0.5) == (moved[task] > 0.5)).float().mean() > 0.99  # bilinear beside nearest
        scan, mask = found["scan"][0], moved["lesion"][0]
        assert all(torch.equal(slices[1], slices[k]) for slices in (scan, mask) for k in (2, 3, 4))
        assert not scan[0].any()
        assert not mask[5].any()
        assert not torch.equal(mask[1], moved["spot"][0])  # every view is drawn on its own
