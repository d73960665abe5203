"""Bytes per rank under DeepSpeed's ZeRO stages, and whether they fit.

Follows what the pinned DeepSpeed allocates (``runtime/zero/stage_1_and_2.py``, ``stage3.py``): a fp32 master copy also
when training in fp32, gradient buckets allocated in full, flattened gradients and Adam's temporaries during the step.
Two moments can be the largest of a step, the turn from forward to backward and the optimizer step; both are reported.
"""

from __future__ import annotations

from dataclasses import dataclass

from m4oe_ds.planning.hardware import Accelerator
from m4oe_ds.planning.model_cost import MicroStep

# DeepSpeed cuts expert parameter groups there (moe/utils.py, max_group_size)
EXPERT_GROUP_ELEMENTS = 178_956_971
# DeepSpeed's stage 3 keeps gathered parameters up to this many elements (stage3_max_live_parameters and reuse distance)
LIVE_ELEMENTS = 1_000_000_000


@dataclass(frozen=True)
class Layout:
    """How a job is spread.

    Attributes:
        world: number of ranks.
        ep: ranks that share the experts; must divide ``world``.
        stage: ZeRO stage, 1 to 3.
        micro: samples per forward and rank.
        accumulation: micro-steps per optimizer step.
        precision: fp32, bf16 or fp16.
        offload: optimizer state and step in host memory.
        bucket: elements of a reduction bucket.
        adam_temporaries: copies of the largest group that Adam makes (1 in its multi-tensor form on GPUs, 2 in its loop
            form on CPUs).
    """

    world: int
    ep: int
    stage: int
    micro: int
    accumulation: int = 1
    precision: str = "bf16"
    offload: bool = False
    bucket: int = 50_000_000
    adam_temporaries: int = 1

    @property
    def replicas(self) -> int:
        """Ranks that hold the same experts and share their optimizer state."""
        return self.world // self.ep

    @property
    def batch(self) -> int:
        """Samples per optimizer step."""
        return self.world * self.micro * self.accumulation


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank.

    Attributes:
        weights: bytes that stay (stage 3: with what is gathered at once).
        gradients: bytes that stay.
        optimizer: bytes of its state, which stays.
        activations: peak of forward and backward besides them, inputs and exchange buffers included.
        buffers: bytes of communication buckets.
        step: most bytes besides weights and optimizer state while it steps.
        host: bytes in host memory per rank.
        peak: device bytes at the worst moment.
        worst: ``backward`` or ``step``.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    step: float
    host: float
    peak: float
    worst: str

    def fits(self, device: Accelerator) -> bool:
        """Whether the peak is within what the device leaves to tensors."""
        return self.peak <= device.usable


def owned(cost: MicroStep, layout: Layout) -> float:
    """Trainable elements whose optimizer state this rank keeps: dense ones over all ranks, experts over replicas."""
    return cost.dense / layout.world + cost.expert / layout.replicas


def rank_memory(cost: MicroStep, layout: Layout) -> RankMemory:
    """Memory of a rank; ``cost`` must have been recorded with the layout's micro-batch, ep and precision.

    Raises:
        ValueError: recorded for another layout.
    """
    if (cost.micro, cost.ep, cost.precision) != (layout.micro, layout.ep, layout.precision):
        raise ValueError(
            f"recorded for {cost.micro, cost.ep, cost.precision}, layout has "
            f"{layout.micro, layout.ep, layout.precision}"
        )
    summed = 0.0
    width, held, own = cost.width, cost.dense + cost.expert, owned(cost, layout)
    frozen = float(width * cost.frozen)
    optimizer, host = 12.0 * own, 0.0  # fp32 master copy and two moments
    step = _step_bytes(cost, layout)
    if layout.stage == 3:
        weights = width * (own + min(held, LIVE_ELEMENTS))
        gradients, activations = 4.0 * own, cost.peak
        buffers = float(width * (layout.bucket + max(cost.tensors)))  # a larger tensor is scattered from a copy
    else:
        weights = float(width * held)
        # bf16 with fp32 accumulation and stage 1 is DeepSpeed's BF16_Optimizer: fp32 sums of all gradients held
        summed = 4.0 * held if layout.stage == 1 and layout.precision == "bf16" else 0.0
        gradients = width * held + summed if layout.stage == 1 else 4.0 * own
        activations = cost.peak
        buffers = float(width * layout.bucket)
    if layout.offload:
        # host: master, moments, fp32 gradient, and the staging copy in the precision of the model
        host, optimizer, step = (16.0 + width) * own, 0.0, 0.0
        gradients = gradients if layout.stage == 1 else float(width * max(cost.tensors))
    states = weights + frozen + optimizer
    if layout.stage == 1:
        backward = states + summed + max(cost.peak_with_gradients, width * held)
        in_step = states + max(buffers + gradients, step)
    else:
        # gradients of the partition arrive while activations go; the peak is at the turn unless states are tiny
        backward = states + activations + buffers + gradients
        extra = width * own if layout.stage == 2 and width < 4 else 0.0  # both precisions alive in the epilogue
        in_step = states + max(step, gradients + extra + buffers)
    peak, worst = max((backward, "backward"), (in_step, "step"))
    return RankMemory(weights + frozen, gradients, optimizer, activations, buffers, step, host, peak, worst)


def _groups(cost: MicroStep, layout: Layout) -> list[tuple[float, float]]:
    """(held, owned) elements of the optimizer groups in their order: the dense one, then experts cut at a maximum."""
    sizes, current = [], 0
    for count in cost.expert_tensors:
        if current and current + count > EXPERT_GROUP_ELEMENTS:
            sizes.append(current)
            current = 0
        current += count
    experts = [(float(size), size / layout.replicas) for size in (*sizes, current)]
    return [(float(cost.dense), cost.dense / layout.world), *experts]


def _step_bytes(cost: MicroStep, layout: Layout) -> float:
    """Most bytes besides weights and optimizer state while groups are stepped one by one.

    Gradients of the groups still to come, the flattened fp32 gradient of this one, and its unflattened form or Adam's
    temporaries, whichever is more.
    """
    groups, temporaries = _groups(cost, layout), layout.adam_temporaries
    if layout.stage == 1 and layout.precision == "bf16":  # sums stay, and are used in place
        held = sum(size for size, _ in groups)
        return (4.0 + cost.width) * held + 4.0 * temporaries * max(own for _, own in groups)
    worst = 0.0
    for index, (_, own) in enumerate(groups):
        waiting = sum(cost.width * size if layout.stage == 1 else 4.0 * part for size, part in groups[index + 1 :])
        worst = max(worst, waiting + 4.0 * own * (1 + max(1, temporaries)))
    return worst
