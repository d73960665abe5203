"""Networks of the estimator for continuous sources, and how a discriminator learns p(y|x)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from m4oe_ds.analysis.information import PatientSplit
from m4oe_ds.analysis.pid.settings import BatchSettings


@dataclass(frozen=True)
class Problem:
    """Standardised sources, labels, split and, in the oracle mode, log conditionals."""

    x: tuple[Tensor, Tensor]
    y: Tensor
    classes: int
    split: PatientSplit
    oracle: tuple[Tensor, Tensor, Tensor] | None


def network(inputs: int, outputs: int, settings: BatchSettings) -> nn.Sequential:
    """ReLU network with ``depth`` hidden layers of width ``hidden``."""
    layers: list[nn.Module] = []
    for _ in range(settings.depth):
        layers += [nn.Linear(inputs, settings.hidden), nn.ReLU()]
        inputs = settings.hidden
    return nn.Sequential(*layers, nn.Linear(inputs, outputs)).to(settings.device)


def batches(rows: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """``steps`` index batches from reshuffled epochs; a last incomplete batch is dropped."""
    size = min(size, rows)
    done = 0
    while done < steps:
        order = torch.randperm(rows, generator=generator)
        for start in range(0, rows - size + 1, size):
            if done < steps:
                yield order[start : start + size]
                done += 1


def train_discriminator(
    x: Tensor, problem: Problem, log_prior: Tensor, settings: BatchSettings, seed: int
) -> tuple[Tensor, int]:
    """Log p(y|x) of *all* rows ``[N, K]`` (float64) from a classifier stopped early on the validation rows.

    The output layer starts at the label frequencies: if no step improves the validation cross-entropy, the classifier
    stays there and the source carries exactly no information. Returns also the step that was kept.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = network(x.shape[1], problem.classes, settings)
    head = classifier[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(log_prior)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    train, validation = (torch.as_tensor(rows) for rows in (problem.split.train, problem.split.validation))
    x_train, y_train = x[train], problem.y[train]
    x_check, y_check = x[validation], problem.y[validation]
    loss = nn.functional.cross_entropy

    def check() -> float:
        with torch.no_grad():
            return float(loss(classifier(x_check), y_check))

    best, kept, state = check(), 0, {name: value.clone() for name, value in classifier.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    for step, rows in enumerate(batches(len(train), settings.batch_size, settings.discriminator_steps, generator), 1):
        optimizer.zero_grad()
        loss(classifier(x_train[rows]), y_train[rows]).backward()
        optimizer.step()
        if step % settings.check_every == 0:
            value = check()
            if value < best:
                best, kept = value, step
                state = {name: value.clone() for name, value in classifier.state_dict().items()}
            elif step - kept >= settings.patience * settings.check_every:
                break
    classifier.load_state_dict(state)
    with torch.no_grad():
        logits = classifier(x).double()
    if settings.temperature_scaling and kept:
        logits = logits / _temperature(logits[validation], y_check)
    return logits.log_softmax(1), kept


def _temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """The temperature with the smallest cross-entropy.

    Grid search of a scalar: cheap, and it cannot diverge where the validation rows are separated perfectly.
    """
    temperatures = torch.logspace(-0.5, 1.0, 61, dtype=torch.float64)
    losses = [nn.functional.cross_entropy(logits / temperature, labels) for temperature in temperatures]
    return temperatures[torch.stack(losses).argmin()]
