"""The only place with process groups: launch, topology, exchange of slots, DeepSpeed adapter, reductions."""
