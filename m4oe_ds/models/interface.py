"""What every model, M4oE or a compared system, takes and returns."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor, nn

from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import ModalitySpec, TaskSpec
from m4oe_ds.layers.reduction import Reduce
from m4oe_ds.layers.routing import Routing


@dataclass(frozen=True)
class ModelSpec:
    """The problem a model is built for.

    Attributes:
        inputs: modalities, in the order of ``Batch.present``.
        tasks: questions, in the order of ``Batch.label_mask``.
        image_size: height and width of every image, in pixels.
        volume_size: depth, height and width of every volume, in voxels; empty where there is none.
        sides: whether samples have sides, two of which make an exam.
    """

    inputs: tuple[ModalitySpec, ...]
    tasks: tuple[TaskSpec, ...]
    image_size: tuple[int, int]
    volume_size: tuple[int, ...] = ()
    sides: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities in order."""
        return tuple(one.name for one in self.inputs)

    @property
    def channels(self) -> tuple[int, ...]:
        """Input channels of each modality; of a table 0."""
        return tuple(0 if one.kind == "table" else one.planes for one in self.inputs)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one sample's tensor of a modality."""
        return self.modality(name).shape(self.image_size, self.volume_size)

    def answer_shape(self, task: TaskSpec) -> tuple[int, ...]:
        """Shape of one sample's answer to a task in a batch."""
        if not task.dense:
            return (2,) if task.kind == "survival" else ()
        return (task.num_classes, *self.shape(self.owner(task.name))[1:])

    def modality(self, name: str) -> ModalitySpec:
        """The modality of that name; KeyError otherwise."""
        return {one.name: one for one in self.inputs}[name]

    def owner(self, task: str) -> str:
        """The modality that the mask of a task lies over; where that is left out, the first one."""
        of = {one.name: one.of for one in self.tasks}[task]
        return of if of in self.modalities else self.modalities[0]

    @property
    def task_names(self) -> tuple[str, ...]:
        """Task names in order."""
        return tuple(task.name for task in self.tasks)


@dataclass
class Tokens:
    """Embedder outputs.

    Attributes:
        by_modality: ``{modality: [B, l_i, d]}``.
        present: ``[B, m]`` bool.
        maps: feature maps ``{modality: [[B, C_s, h_s, w_s], ...]}`` from fine to coarse, of models that work on maps.
    """

    by_modality: dict[str, Tensor]
    present: Tensor
    maps: dict[str, list[Tensor]] = field(default_factory=dict)


@dataclass
class Fused:
    """Task representations after fusion.

    Attributes:
        features: ``{task: [B, d] or [B, l, d]}``.
        routing: routing of every mixture layer, by module path; the MToE layer is called ``mtoe``.
        aux: named auxiliary losses, unweighted.
        modality_of_token: ``[M]`` modality index of the tokens of ``routing["mtoe"]``.
        extras: tensors that ``predict`` or a model's own loss reads, by the names of :mod:`m4oe_ds.layers.extras`.
        maps: see :class:`Tokens`; what mask decoders read.
    """

    features: dict[str, Tensor]
    routing: dict[str, Routing] = field(default_factory=dict)
    aux: dict[str, Tensor] = field(default_factory=dict)
    modality_of_token: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, list[Tensor]] = field(default_factory=dict)


@dataclass
class ModelOutput:
    """Predictions of a batch.

    Attributes:
        logits: ``{task: [B, C]}`` of the classes, ``[B, 1]`` a number on its standardised scale, ``[B, H]`` of the
            hazards up to each horizon, or ``[B, C, H, W]`` (``[B, C, D, H, W]``) one mask per class.
        routing: see :class:`Fused`.
        aux: see :class:`Fused`.
        modality_of_token: see :class:`Fused`.
        extras: what a model's own loss or analysis reads, by the names of :mod:`m4oe_ds.layers.extras`.
    """

    logits: dict[str, Tensor]
    routing: dict[str, Routing] = field(default_factory=dict)
    aux: dict[str, Tensor] = field(default_factory=dict)
    modality_of_token: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


class MultiModalModel(nn.Module):
    """Base of all models: ``forward = predict(fuse(encode(batch)))``. No loss, optimizer or training step in here."""

    spec: ModelSpec
    head_modules: tuple[str, ...] = ("heads", "decoders")  # attributes that make logits of features
    held: tuple[nn.Module, ...] = ()  # frozen: always in evaluation mode

    def train(self, mode: bool = True) -> MultiModalModel:
        """Training or evaluation mode; frozen modules stay in evaluation mode.

        A batch norm would go on to follow the data, and dropout to make noise, although nothing behind them learns.
        """
        super().train(mode)
        for module in self.held:
            module.eval()
        return self

    def encode(self, batch: Batch) -> Tokens:
        """Tokens of every modality on its own."""
        raise TypeError(f"{type(self).__name__} does not define encode")

    def fuse(self, tokens: Tokens, batch: Batch) -> Fused:
        """One representation per task from the tokens of all modalities."""
        raise TypeError(f"{type(self).__name__} does not define fuse")

    def predict(self, fused: Fused) -> ModelOutput:
        """Logits of every task."""
        raise TypeError(f"{type(self).__name__} does not define predict")

    def forward(self, batch: Batch) -> ModelOutput:
        """Predictions for a batch."""
        return self.predict(self.fuse(self.encode(batch), batch))

    def inner_level(self, reduce: Reduce) -> AbstractContextManager[None]:
        """Around the forward of a training step: a model optimised in two levels takes its inner step in there.

        Collectives: those of ``reduce``, in every forward inside; every rank makes the same forwards.
        """
        return nullcontext()

    def shared_layer(self) -> nn.Module:
        """The last layer that all tasks use (where gradient conflict is measured)."""
        raise TypeError(f"{type(self).__name__} does not define shared_layer")
