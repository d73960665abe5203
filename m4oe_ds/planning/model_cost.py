"""Parameters, arithmetic, memory traffic, activations and exchanges of one micro-step, by running it without data.

The model of a resolved configuration is built with one rank's share of the experts out of fake tensors, which have
shapes but no storage, and one forward and backward pass is recorded operation by operation. Nothing is estimated
from formulas that could drift away from the code; whatever model the registry builds is counted the same way.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.layers.experts import ExpertWeights, sharded
from m4oe_ds.layers.passes import whole
from m4oe_ds.losses.mutual_information import official_token_task_information
from m4oe_ds.models import build
from m4oe_ds.models.interface import ModelOutput, ModelSpec
from m4oe_ds.models.registry import spec_for
from m4oe_ds.runs.objective import objective

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_aten = torch.ops.aten


@dataclass(frozen=True)
class Operation:
    """One kernel: ``flops`` (2 per multiply-add; matrix products only), ``traffic`` in bytes read and written.

    Attributes:
        phase: ``forward``, ``backward`` or ``loss``.
        width: bytes per element of the result.
        products: matrix products in it (a batched one holds many).
        attention: whether it is fused attention.
    """

    name: str
    part: str
    phase: str
    flops: float
    traffic: float
    width: int
    products: int = 1
    attention: bool = False


@dataclass(frozen=True)
class MicroStep:
    """What one rank does with one micro-batch.

    Attributes:
        micro: number of samples.
        ep: ranks that share the experts.
        precision: precision of parameters and activations.
        parameters: elements of the whole model by part (all experts).
        expert_total: elements of the whole model that are in experts.
        dense: trainable elements outside of experts held by this rank before ZeRO.
        expert: trainable elements of experts held by this rank before ZeRO.
        frozen: elements without gradient.
        tensors: elements of every parameter held by this rank, in the order of the model.
        expert_tensors: the entries of ``tensors`` that belong to experts.
        saved: bytes kept from forward for backward, parameters not counted, inputs counted.
        peak: most bytes alive at once besides parameters when every gradient is handed on at once (ZeRO-2 and 3).
        peak_with_gradients: the same when gradients stay until the step (ZeRO-1).
        exchanges: elements of each all-to-all of the forward pass (the backward repeats them).
        operations: all operations, in the order in which they ran.
    """

    micro: int
    ep: int
    precision: str
    parameters: dict[str, int]
    expert_total: int
    dense: int
    expert: int
    frozen: int
    tensors: tuple[int, ...]
    expert_tensors: tuple[int, ...]
    saved: int
    peak: int
    peak_with_gradients: int
    exchanges: tuple[int, ...]
    operations: tuple[Operation, ...]

    @property
    def width(self) -> int:
        """Bytes per parameter and activation element."""
        return 4 if self.precision == "fp32" else 2

    @property
    def total(self) -> int:
        """Elements of the whole model."""
        return sum(self.parameters.values())

    def flops(self, phase: str | None = None) -> float:
        """Operations of a phase, or of all of them."""
        return sum(op.flops for op in self.operations if phase in (None, op.phase))

    def traffic(self, phase: str | None = None) -> float:
        """Bytes read and written by the kernels of a phase, or of all of them."""
        return sum(op.traffic for op in self.operations if phase in (None, op.phase))

    def flops_by_part(self) -> dict[str, float]:
        """Forward operations by top-level part of the model."""
        parts: dict[str, float] = {}
        for op in self.operations:
            if op.phase == "forward" and op.flops:
                parts[op.part] = parts.get(op.part, 0.0) + op.flops
        return parts


class _Exchange(torch.autograd.Function):
    """Allocates what an all-to-all allocates, in both directions."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.empty_like(gradients[0].contiguous())


class _ExpertShare(nn.Module):
    """One rank's share of the experts, with the buffers of the exchange but no exchange."""

    def __init__(self, num_experts: int, dim: int, hidden: int, ep: int, exchanges: list[int]) -> None:
        super().__init__()
        self.num_experts, self.ep, self.exchanges = num_experts, ep, exchanges
        self.experts = ExpertWeights(range(num_experts // ep), dim, hidden)

    def forward(self, slots: Tensor) -> Tensor:
        """``[B, n, s, d] -> [B, n, s, d]``."""
        return self.run_together([self], [slots])[0]

    @staticmethod
    def run_together(layers: Sequence[_ExpertShare], slots: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of several layers, per layer as :meth:`forward`."""
        exchanges = layers[0].exchanges

        def exchange(x: Tensor) -> Tensor:
            exchanges.append(x.numel())
            out: Tensor = _Exchange.apply(x)
            return out

        return sharded(slots, layers[0].ep, [layer.experts for layer in layers], exchange)


class _FusedAttention(TorchFunctionMode):
    """Attention without the matrix of weights, as GPU and CPU kernels do it, whatever torch chooses for no data."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    output: Tensor = _aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return output


def _attention_flops(func: Any, args: tuple[Any, ...]) -> float:
    """Two matrix products forward, five backward (one of them recomputes the weights)."""
    backward = func is _aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    query, key = (args[1], args[2]) if backward else (args[0], args[1])
    product = 2.0 * query.shape[0] * query.shape[1] * query.shape[2] * query.shape[3] * key.shape[2]
    return product * (5 if backward else 2)


class _Tape(TorchDispatchMode):
    """Records every kernel and the bytes alive after it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.phase, self.part = "forward", ""
        self.alive = self.peak = self.gradients = self.peak_with_gradients = 0
        self.known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self.known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        read = {id(tensor.untyped_storage()) for tensor in inputs}
        fresh = [tensor for tensor in outputs if id(tensor.untyped_storage()) not in read]
        for tensor in fresh:
            self.hold(tensor)
        if (fresh or func._schema.is_mutable) and not func.__name__.startswith(("empty", "new_empty")):
            flops, attention = 0.0, "scaled_dot_product" in func.__name__
            products = outputs[0].shape[0] if "bmm" in func.__name__ else 1
            if func._overloadpacket in flop_registry:
                flops = float(flop_registry[func._overloadpacket](*args, **kwargs, out_val=result))
            elif attention:
                flops = _attention_flops(func, args)
            traffic = sum(_bytes(tensor) for tensor in (*inputs, *outputs))
            width = outputs[0].element_size() if outputs else 4
            self.operations.append(
                Operation(func.__name__, self.part, self.phase, flops, traffic, width, products, attention)
            )
        return result

    def hold(self, tensor: Tensor) -> None:
        """Counts a storage until it dies."""
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        size = storage.nbytes()
        self.known[storage] = size
        self.alive += size
        weakref.finalize(storage, self._release, size)
        self.peak = max(self.peak, self.alive)
        self.peak_with_gradients = max(self.peak_with_gradients, self.alive + self.gradients)

    def _release(self, size: int) -> None:
        self.alive -= size

    def hand_on(self, parameter: Tensor) -> None:
        """Takes a finished gradient out of the activations."""
        assert parameter.grad is not None
        self.gradients += parameter.grad.untyped_storage().nbytes()
        parameter.grad = None
        self.peak_with_gradients = max(self.peak_with_gradients, self.alive + self.gradients)


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def micro_step(config: Config, precision: Precision = "fp32", micro: int = 1, ep: int = 1) -> MicroStep:
    """Records forward, loss and backward of ``micro`` samples on one rank of ``ep`` that share the experts.

    Args:
        config: resolved configuration.
        precision: precision of parameters and activations.
        micro: samples of the micro-batch.
        ep: must divide every expert count.

    Returns:
        The record; bytes are exact for the kernels PyTorch runs, without allocator rounding and library workspaces.
    """
    exchanges: list[int] = []
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    model = _build(config, DTYPES[precision], fake, lambda n, d, h: _ExpertShare(n, d, h, ep, exchanges))
    spec = spec_for(config)
    tape = _Tape(model)
    saved: dict[int, tuple[Any, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tape.known.get(storage, 1) != 0:  # parameters are known with size 0
            saved[id(storage)] = (storage, storage.nbytes())
        return tensor

    handles = _attribute(model, tape)
    with fake:
        batch = zero_batch(spec, micro, DTYPES[precision])
        if config.data.contralateral:
            batch = _with_other_side(batch)
    for view in (*batch.views.values(), *batch.extras.values()):
        tape.hold(view)
    with fake, tape, _FusedAttention(), whole():  # as on a GPU; the pieces of a CPU need less
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(batch)
            tape.part, tape.phase = "loss", "loss"
            loss = _loss(config, spec, output, batch)
        total_saved = sum(size for _, size in saved.values())
        saved.clear()
        del output
        tape.part, tape.phase = "backward", "backward"
        loss.backward()
    for handle in handles:
        handle.remove()
    return _summary(config, model, tape, total_saved, exchanges, precision, micro, ep)


def _build(config: Config, dtype: torch.dtype, fake: FakeTensorMode, factory: Any) -> nn.Module:
    # weights are not loaded: only shapes matter, and the hub may be out of reach
    embedder = dataclasses.replace(config.model.embedder, weights="")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, embedder=embedder))
    with torch.device("meta"):
        model = build(config, factory).to(dtype)
    with fake:  # the meta device itself lacks autocast, which the router needs
        return model.to_empty(device="cpu").train()


def _attribute(model: nn.Module, tape: _Tape) -> list[Any]:
    """Labels kernels with the top-level part whose forward is running, and collects gradients."""
    handles: list[Any] = []
    for name, child in model.named_children():
        leaves = list(child.children()) if isinstance(child, (nn.ModuleDict, nn.ModuleList)) else [child]
        for leaf in leaves:
            handles.append(leaf.register_forward_pre_hook(lambda *_, part=name: setattr(tape, "part", part)))
            handles.append(leaf.register_forward_hook(lambda *_: setattr(tape, "part", "other")))
    for parameter in model.parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(tape.hand_on))
    return handles


def zero_batch(spec: ModelSpec, micro: int, dtype: torch.dtype, device: str = "cpu") -> Batch:
    """A batch of zeros with every modality and label present; of tables no value is known."""
    views = {
        one.name: torch.zeros(
            micro, *spec.shape(one.name), dtype=torch.float32 if one.kind == "table" else dtype, device=device
        )
        for one in spec.inputs
    }
    labels = {
        task.name: torch.zeros(
            micro, *spec.answer_shape(task), dtype=torch.int64 if task.coded else torch.float32, device=device
        )
        for task in spec.tasks
    }
    return Batch(
        views=views,
        present=torch.ones(micro, len(spec.modalities), dtype=torch.bool, device=device),
        labels=labels,
        label_mask=torch.ones(micro, len(spec.tasks), dtype=torch.bool, device=device),
        valid=torch.ones(micro, dtype=torch.bool, device=device),
        keys=("",) * micro,
        groups=("",) * micro,
        modalities=spec.modalities,
        tasks=spec.task_names,
    )


def _with_other_side(batch: Batch) -> Batch:
    """The batch with the views of the other side, all of them there."""
    other = {f"contralateral.{name}": torch.zeros_like(view) for name, view in batch.views.items()}
    return dataclasses.replace(batch, extras={**other, "contralateral_present": torch.ones_like(batch.present)})


def _loss(config: Config, spec: ModelSpec, output: ModelOutput, batch: Batch) -> Tensor:
    goal = objective(config, spec, None, batch.valid.device)
    loss = torch.stack([part.sum for part in goal.task_parts(output, batch).values()]).sum()
    if config.loss.alpha == 0:
        return loss
    term: Tensor | None
    if config.loss.mutual_information.source == "official":  # selects valid samples, which needs their values
        term = official_token_task_information(output.routing["mtoe"].information_logits)
    else:
        term = goal.mutual_information(output, batch)
    for value in output.aux.values():
        loss = loss + value
    return loss if term is None else loss - config.loss.alpha * term


def _expert_names(model: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, ExpertWeights)
        for name, _ in module.named_parameters()
    }


def _summary(
    config: Config,
    model: nn.Module,
    tape: _Tape,
    saved: int,
    exchanges: list[int],
    precision: str,
    micro: int,
    ep: int,
) -> MicroStep:
    experts = _expert_names(model)
    named = list(model.named_parameters())
    parts: dict[str, int] = {}
    for name, parameter in named:
        part = name.split(".", 1)[0]
        parts[part] = parts.get(part, 0) + parameter.numel() * (ep if name in experts else 1)
    trainable = [(name, parameter.numel()) for name, parameter in named if parameter.requires_grad]
    return MicroStep(
        micro=micro,
        ep=ep,
        precision=precision,
        parameters=parts,
        expert_total=ep * sum(parameter.numel() for name, parameter in named if name in experts),
        dense=sum(count for name, count in trainable if name not in experts),
        expert=sum(count for name, count in trainable if name in experts),
        frozen=sum(parameter.numel() for _, parameter in named if not parameter.requires_grad),
        tensors=tuple(count for _, count in trainable),
        expert_tensors=tuple(count for name, count in trainable if name in experts),
        saved=saved,
        peak=tape.peak,
        peak_with_gradients=tape.peak_with_gradients,
        exchanges=tuple(exchanges),
        operations=tuple(tape.operations),
    )
