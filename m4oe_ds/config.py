"""The typed configuration tree. Every option, its type, default and meaning is here and nowhere else.

Reading YAML into it is in :mod:`m4oe_ds.config_loader`; the DeepSpeed JSON stays DeepSpeed's and is only checked
(:mod:`m4oe_ds.deepspeed_json`). ``docs/reference/configuration.md`` is generated from the sentences below.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from m4oe_ds.config_fields import option, section

CONFIG_VERSION = 1
PARTS = ("backbone", "router", "experts", "heads", "other")  # of a model: m4oe_ds/models/parts.py
TRACKERS = ("tensorboard", "wandb", "mlflow")  # m4oe_ds/training/trackers.py
DECAY_KINDS = ("norms", "biases", "scales", "embeddings")  # of parameters that are no weights
SMALLEST_IMAGE, MOST_PIXELS, MOST_VOXELS = 8, 16384, 4096  # along one side
MOST_PROCESSES = 4096  # of one machine
MOST_SEED = 2**63 - 1
MOST_EXAMPLES = 1000  # of a report, whose page holds all of their pictures


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = option(0, "Save every N optimizer steps; 0 = at the end of each epoch only.", at_least=0)
    keep_last: int = option(2, "Newest checkpoints to keep; the best one is always kept.", at_least=1)
    background: bool = option(True, "Write in a thread while training continues; needs host memory for one copy.")
    metric: Literal["loss", "auroc", "balanced_accuracy"] = option(
        "loss", "Validation figure that decides the best: `loss`, `auroc` or `balanced_accuracy`."
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = option("run", "Name shown in logs and the report.")
    seed: int = option(0, "The one seed every generator is derived from.", at_least=0, at_most=MOST_SEED)
    num_epochs: int = option(100, "Passes over the training split (paper: 100).", at_least=1)
    max_steps: int = option(0, "Stop after N optimizer steps; 0 = no limit.", at_least=0)
    log_every_steps: int = option(10, "Write a log line every N optimizer steps.", at_least=1)
    eval_every_epochs: int = option(1, "Evaluate on the validation split every N epochs; 0 = never.", at_least=0)
    patience: int = option(
        0, "Stop after N validations in a row without a better `run.checkpoint.metric`; 0 = never.", at_least=0
    )
    min_improvement: float = option(
        0.0, "`run.patience`: by how much that figure must be better to count as an improvement.", at_least=0
    )
    conflict_every_steps: int = option(
        0, "Log the cosines of the tasks' gradients at the last shared layer every N steps; 0 = never.", at_least=0
    )
    detect_anomaly: bool = option(
        False, "Name the operation whose gradient is not a number; slows training down several times."
    )
    tensorboard: bool = option(True, "Write TensorBoard events next to log.jsonl, if `run.trackers` has it.")
    trackers: tuple[str, ...] = option(
        ("tensorboard",), "Who is told the figures: `tensorboard`, `wandb`, `mlflow`, or `package.module:Class`."
    )
    checkpoint: CheckpointConfig = section(CheckpointConfig, "When to save and what to keep.")
    expects: dict[str, Any] = option(
        {}, "Dotted keys of the DeepSpeed JSON and the values this recipe relies on; a difference stops the run."
    )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    enabled: bool = option(False, "Augment training images; everything below is inactive otherwise.")
    rotation_degrees: float = option(10.0, "Largest rotation, uniform in both directions.", at_least=0, at_most=180)
    translation: float = option(0.04, "Largest shift as a fraction of the image side.", at_least=0, at_most=1)
    scale: float = option(0.08, "Largest relative change of size.", at_least=0, below=1)
    gamma: float = option(0.15, "Largest relative change of the grey-scale exponent.", at_least=0, at_most=1)
    contrast: float = option(0.1, "Largest relative change of contrast.", at_least=0, at_most=1)
    noise: float = option(
        0.01, "Standard deviation of Gaussian noise, in units of the full grey scale.", at_least=0, at_most=1
    )
    vertical_flip: bool = option(False, "Mirror top to bottom with probability one half.")
    horizontal_flip: bool = option(
        False, "Mirror left to right with probability one half; not where the converter turned all to one side."
    )
    colour: float = option(0.0, "Largest relative change of each colour channel.", at_least=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    patients: int = option(0, "Synthetic patients to generate where `root` does not exist; 0 = never.", at_least=0)
    root: str = option("", "Folder of their shards; made only if `data.root` is this very folder, never for another.")
    seed: int = option(0, "Seed of the synthetic archive.", at_least=0, at_most=2**32 - 1)
    risk_prevalence: float = option(
        0.35, "Share of the synthetic people who meet the event of the tasks with a horizon.", at_least=0, at_most=1
    )
    image_size: tuple[int, ...] = option(
        (128, 104), "Rows and columns of the images stored in the shards.", at_least=SMALLEST_IMAGE, at_most=MOST_PIXELS
    )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    kind: Literal["uniform", "balanced"] = option(
        "uniform", "`uniform`: every sample once per epoch; `balanced`: rare classes more often, common ones less."
    )
    tasks: tuple[str, ...] = option(
        (), "`balanced`: tasks whose classes count; with all horizons of an event its time.", names="tasks"
    )
    strength: float = option(0.5, "`balanced`: 0 = as they come, 1 = all classes equally often.", at_least=0, at_most=1)
    max_ratio: float = option(
        20.0, "`balanced`: no sample comes more than this many times as often as another.", at_least=1
    )
    correct_evaluation: bool = option(
        True, "`balanced`: at evaluation add log(class share in the data / in the epochs drawn) to the logits."
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    dataset: str = option(
        "embed", "Data set: the name of a shipped card, or the path of one of your own.", names="a data set"
    )
    root: str = option("", "Folder, or http(s)://, s3:// or gs:// address, holding one sub-folder of shards per split.")
    cache_dir: str = option("", "Remote shards: local folder to fetch them to; empty = read parts of them remotely.")
    cache_gb: float = option(
        50.0, "Remote shards: most the cache folder may hold, in 10^9 bytes, per machine.", above=0
    )
    modalities: tuple[str, ...] = option(
        (), "Modalities to use, by name; empty = all of the data set.", names="modalities"
    )
    tasks: tuple[str, ...] = option((), "Tasks to train, by name; empty = all of the data set.", names="tasks")
    image_size: tuple[int, ...] = option(
        (224, 224), "Height and width fed to the embedders, in pixels.", at_least=SMALLEST_IMAGE, at_most=MOST_PIXELS
    )
    volume_size: tuple[int, ...] = option(
        (32, 64, 64),
        "Depth, height and width of volumes in 3-D fed to the embedders, in voxels.",
        at_least=4,
        at_most=MOST_VOXELS,
    )
    complete_only: bool = option(False, "Use only samples that have every modality (what the paper implies).")
    modality_dropout: float = option(
        0.0,
        "Training: each modality of a sample counts as absent with this probability; one always stays.",
        at_least=0,
        below=1,
    )
    last_batch: Literal["pad", "drop"] = option(
        "pad", "`pad`: every sample once per epoch, the last batch filled with padding; `drop`: leave out a remainder."
    )
    sampling: SamplingConfig = section(SamplingConfig, "How often samples come during training.")
    contralateral: bool = option(False, "Also read the other side of the same exam (AsymMirai needs it).")
    workers: int = option(
        2,
        "Reader processes per rank; 0 reads in the training process.",
        at_least=0,
        at_most=MOST_PROCESSES,
    )
    verify: Literal["full", "size"] = option("full", "Check shards at start by sha256 (`full`) or by size alone.")
    max_bad_fraction: float = option(
        0.001, "Stop when more than this share of the samples of a split is unreadable.", at_least=0, at_most=1
    )
    augment: AugmentConfig = section(AugmentConfig, "Training-time augmentation.")
    phantom: PhantomConfig = section(PhantomConfig, "Synthetic data, made where there are no shards (demo).")


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    backbone: str = option(
        "vit_base_patch16_224",
        "Name of any timm model, ViT or convolutional; volumes in 3-D need a ViT, whose blocks they pass.",
        names="a network of timm",
    )
    options: dict[str, Any] = option({}, "Further keyword arguments for timm, e.g. {patch_size: 8, depth: 2}.")
    volume_patch: tuple[int, ...] = option(
        (8, 16, 16), "Depth, height and width of a patch of a volume; must divide `data.volume_size`.", at_least=1
    )
    weights: str = option("", "Empty = random; a path to local weights; or `hub` to download (needs a network).")
    replicate_grey: bool = option(
        False, "Repeat grey images to three identical channels, as the authors' release does."
    )
    share: bool = option(
        False, "One embedder for all modalities, which must be of one kind, not one each; adds a modality embedding."
    )
    freeze: bool = option(
        False, "Do not train the backbones; patches of volumes and the embedders of tables are still trained."
    )
    modality_embed: bool = option(False, "Add a learned vector per modality to its tokens.")


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    norm: bool = option(True, "Compare unit vectors times a learned scale, as the authors' release does.")
    scale_init: float = option(
        1.0, "Initial router scale; routing is close to uniform at 1 and sharpens with it.", at_least=0
    )
    dispatch_normalized: bool = option(False, "Dispatch the unit-norm tokens (the release) instead of the raw ones.")
    detach_information: bool = option(
        False, "Let the mutual-information term reach the MToE router only, not the layers below it."
    )
    combine: Literal["joint", "per_task"] = option("joint", "Combine softmax over all slots, or within each task.")


@dataclass(frozen=True, kw_only=True)
class MSoEConfig:
    num_experts: int = option(32, "Experts of each modality's Soft-MoE (paper: 32).", at_least=1)
    depth: int = option(2, "Blocks per modality.", at_least=1)
    num_heads: int = option(8, "Attention heads.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class MToEConfig:
    num_experts: int = option(128, "Experts of the modality-task mixture (paper: 128).", at_least=1)
    num_heads: int = option(8, "Attention heads.", at_least=1)
    task_embed_std: float = option(0.0, "Standard deviation of the initial task embeddings; 0 = zeros.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    num_experts: int = option(16, "Experts of the fusion tower's Soft-MoE.", at_least=1)
    depth: int = option(2, "Blocks of the fusion tower, shared by all tasks.", at_least=1)
    num_heads: int = option(8, "Attention heads.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str = option(
        "m4oe", "A name that `m4oe models` lists, or one of your own: `package.module:Class`.", names="a system"
    )
    dim: int = option(768, "Token width d.", at_least=1)
    mlp_ratio: float = option(4.0, "Hidden width of an expert in units of d.", above=0)
    use_mtoe: bool = option(True, "Ablation switch: without it a learned task query takes the place of g_k.")
    use_msoe: bool = option(True, "Ablation switch: without it pooled embedder tokens take the place of z_i.")
    missing_modality: Literal["mask", "bank"] = option(
        "mask", "`m4oe`: leave out the tokens of an absent modality, or learn some for each combination (Flex-MoE)."
    )
    mask_channels: int = option(256, "Width of the decoder of a mask task; most of the cost of one.", at_least=1)
    embedder: EmbedderConfig = section(EmbedderConfig, "Embedders of images, volumes and tables.")
    router: RouterConfig = section(RouterConfig, "Router of every mixture layer.")
    msoe: MSoEConfig = section(MSoEConfig, "Modality-specific Soft-MoE towers.")
    mtoe: MToEConfig = section(MToEConfig, "Modality-task mixture of experts.")
    fusion: FusionConfig = section(FusionConfig, "Fusion tower.")
    freeze: tuple[str, ...] = option(
        (),
        "Parts that are not trained: `backbone`, `router`, `experts`, `heads`, `other`; their batch norms and dropout "
        "stay as in evaluation.",
    )
    activation_checkpointing: bool = option(False, "Recompute block activations in backward to save memory.")
    init_from: str = option(
        "", "Start from a trained model: a run folder, an export folder or a `*.safetensors` with its configuration."
    )
    init_map: dict[str, str] = option(
        {}, "`init_from`: modality or task of this run: the one of the source it starts from; empty = from none."
    )
    regime: Literal["vit", "native"] = option(
        "vit",
        "Compared systems: encoders of `model.embedder` (`vit`, like for like), or those of the original (`native`).",
    )
    attach_mtoe: Literal["none", "replace", "append"] = option(
        "none", "Compared systems: put an MToE in place of the fusion (`replace`), or add it to that (`append`)."
    )
    options: dict[str, Any] = option({}, "Options of the named model; see the end of this page.")


@dataclass(frozen=True, kw_only=True)
class MutualInformationConfig:
    source: Literal["dispatch", "gate", "joint", "combine", "official"] = option(
        "dispatch", "Softmax of the router logits that defines P(M,E|T); `official`: the term of the authors' release."
    )
    aggregate: Literal["batch", "sample"] = option(
        "batch", "Average P over the global micro-batch before the information, or the information over samples."
    )
    task_weight: Literal["prior", "sum"] = option("prior", "Weight tasks by P(T), or add them up as eq. 6 prints it.")
    task_prior: Literal["batch", "dataset", "uniform"] = option(
        "batch", "P(T): the share of labels in the `batch` or in the training split (`dataset`), or 1/p (`uniform`)."
    )
    mask_by_label: bool = option(True, "A sample counts for task k only if it has that label.")


@dataclass(frozen=True, kw_only=True)
class TaskLossConfig:
    kind: Literal["auto", "cross_entropy", "focal", "ranked_probability", "huber", "mse", "hazard", "bce_dice"] = (
        option(
            "auto",
            "`auto`: cross-entropy for classes, `huber` for numbers (standardised; delta 1), `hazard` for survival "
            "(censored likelihood by intervals), BCE + Dice for masks; `ranked_probability`: ordinal tasks.",
        )
    )
    weight: float = option(1.0, "Factor of this task's loss.", at_least=0)
    gamma: float = option(2.0, "Focusing exponent of the focal loss.", at_least=0)
    class_weight: Literal["none", "complement", "balanced"] = option(
        "none", "`complement`: 1 - class frequency (the release); `balanced`: N / (classes * N_class)."
    )
    label_smoothing: float = option(0.0, "Label smoothing of the cross-entropy.", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class CalibratedOptions:
    """``loss.gradient_options`` of ``loss.gradient_policy: calibrated``."""

    rule: Literal["norm", "imtl_g"] = option("norm", "One level of the gradients, or equal projections.")
    momentum: float = option(0.9, "`norm`: smoothing of the mean norm over the steps.", at_least=0, below=1)
    normalise: bool = option(True, "`norm`: weights sum to the number of tasks; the smoothing then cancels.")
    branches: bool = option(True, "Calibrate the modality branches as well.")
    weighted_heads: bool = option(False, "Weigh the losses, and so the heads too.")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    alpha: float = option(0.05, "Weight of the mutual information, subtracted from the loss (paper: 0.05).", at_least=0)
    mutual_information: MutualInformationConfig = section(
        MutualInformationConfig, "Definition of the mutual-information term."
    )
    gradient_policy: Literal["sum", "calibrated"] = option(
        "sum",
        "`calibrated`: bring the gradients of tasks and modalities to one level (FULLER); a second forward per step.",
    )
    gradient_options: dict[str, Any] = option({}, "Options of `calibrated`; see the end of this page.")
    default: TaskLossConfig = section(TaskLossConfig, "Loss of every task not listed under `tasks`.")
    tasks: dict[str, TaskLossConfig] = option({}, "Losses of single tasks, by task name.", names="tasks")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    kind: Literal["step", "cosine", "constant"] = option("step", "Shape of the learning-rate factor over time.")
    step_epochs: int = option(5, "`step`: epochs between two decays (paper: 5).", at_least=1)
    gamma: float = option(0.1, "`step`: factor of each decay (paper: 0.1).", at_least=0, at_most=1)
    warmup_steps: int = option(0, "Linear warm-up from 0 over N optimizer steps, for any kind.", at_least=0)
    peak_factor: float = option(1.0, "Factor of the base rate that the schedule starts (or warms up) to.", above=0)
    min_factor: float = option(0.0, "The factor never falls below this.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    lr_factor: float = option(1.0, "Factor of the learning rate of this part.", at_least=0)
    decay_factor: float = option(1.0, "Factor of the weight decay of this part.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    parts: dict[str, PartConfig] = option(
        {}, "By part of the model (`backbone`, `router`, `experts`, `heads`, `other`): factors of rate and decay."
    )
    no_decay: tuple[str, ...] = option(
        (), "Parameters without weight decay: any of `norms`, `biases`, `scales`, `embeddings`; empty = all decay."
    )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    ep_size: int = option(
        0, "Ranks that share the experts; 0 = as many as the world size and expert counts allow.", at_least=0
    )
    timeout_minutes: float = option(
        10.0, "A collective that takes longer fails the run; at most a week.", above=0, at_most=10080
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    splits: tuple[str, ...] = option(("val", "test"), "Splits evaluated at the end of training.", names="splits")
    resamples: int = option(
        1000, "Patient-clustered bootstrap resamples for the intervals.", at_least=0, at_most=1_000_000
    )
    micro_batch: int = option(0, "Samples per forward and rank; 0 = as in training.", at_least=0)
    num_examples: int = option(
        6,
        "Samples shown with their modalities and modality contributions in the report.",
        at_least=0,
        at_most=MOST_EXAMPLES,
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    config_version: int = option(CONFIG_VERSION, "Version of the layout of these options.")
    run: RunConfig = section(RunConfig, "Length, cadence, seed.")
    data: DataConfig = section(DataConfig, "Shards and what is read from them.")
    model: ModelConfig = section(ModelConfig, "Architecture.")
    loss: LossConfig = section(LossConfig, "Task losses and the mutual-information term.")
    schedule: ScheduleConfig = section(ScheduleConfig, "Factors of the base rate, which the DeepSpeed JSON owns.")
    optim: OptimConfig = section(OptimConfig, "Rate and decay by part; the DeepSpeed JSON owns both.")
    parallel: ParallelConfig = section(ParallelConfig, "Expert parallelism.")
    evaluation: EvaluationConfig = section(EvaluationConfig, "Final evaluation.")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict (lists for tuples) of a configuration dataclass, ready for YAML."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    result: dict[str, Any] = plain(config)
    return result
