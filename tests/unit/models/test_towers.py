"""What the configuration says about routers arrives in every router, whole."""

from __future__ import annotations

import dataclasses

from m4oe_ds.config import ModelConfig, RouterConfig, to_dict
from m4oe_ds.layers import RouterOptions
from m4oe_ds.models.towers import router_options


def test_the_options_of_a_router_are_those_of_the_configuration() -> None:
    assert dataclasses.asdict(RouterOptions()) == to_dict(RouterConfig())
    changed = RouterConfig(
        norm=False, scale_init=3.0, dispatch_normalized=True, detach_information=True, combine="per_task"
    )
    assert to_dict(changed) == dataclasses.asdict(router_options(ModelConfig(router=changed)))
