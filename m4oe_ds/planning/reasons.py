"""Why a layout was chosen, in figures: one reason per choice, against the alternatives that were compared."""

from __future__ import annotations

import dataclasses
from typing import Any

from m4oe_ds.planning.candidates import Candidate, Costs, Wishes, evaluate
from m4oe_ds.planning.hardware import Cluster


def _gb(value: float) -> str:
    return f"{value / 1e9:.1f} GB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


def reasons_for(
    chosen: Candidate, candidates: list[Candidate], cluster: Cluster, wishes: Wishes, costs: Costs
) -> list[tuple[str, str]]:
    """One (choice, reason) pair per decision, each backed by the alternative's figures."""
    reasons = [_device_reason(chosen, candidates, cluster, wishes)]
    reasons.append(_ep_reason(chosen, candidates, wishes))
    reasons.append(_stage_reason(chosen, candidates, wishes))
    reasons.append(_micro_reason(chosen, costs, wishes))
    reasons.append(_precision_reason(chosen, costs))
    layout, time = chosen.layout, chosen.time
    hidden = min(time.reduction, time.compute * 0.6)
    reasons.append(
        (
            "overlap_comm false",
            f"overlapping would hide at most {_ms(hidden)} of {_ms(time.total)}, and runs a second stream of "
            "collectives next to the expert exchange",
        )
    )
    if layout.offload:
        reasons.append(
            ("optimizer offload", f"without it no layout fits; {_gb(chosen.memory.host)} of host memory per rank")
        )
    else:
        reasons.append(("no offload", "optimizer state fits on the devices; moving it costs time every step"))
    if chosen.recompute:
        reasons.append(
            (
                "activation checkpointing",
                "configured, or nothing fits without it; costs about a third more arithmetic",
            )
        )
    else:
        reasons.append(
            (
                "no activation checkpointing",
                f"activations take {_gb(chosen.memory.activations)} and fit; recomputing costs time",
            )
        )
    return reasons


def _alternatives(chosen: Candidate, candidates: list[Candidate], *, same: tuple[str, ...]) -> list[Candidate]:
    """Candidates that agree with the chosen one in ``same`` (cluster, ep or stage), the fastest first."""

    def keys(item: Candidate) -> dict[str, Any]:
        return {"cluster": str(item.cluster), "ep": item.layout.ep, "stage": item.layout.stage}

    own = keys(chosen)
    others = [
        item
        for item in candidates
        if item is not chosen
        and (item.recompute, item.layout.offload) == (chosen.recompute, chosen.layout.offload)
        and all(keys(item)[name] == own[name] for name in same)
    ]
    return sorted(others, key=lambda item: item.time.total)


def _device_reason(chosen: Candidate, candidates: list[Candidate], cluster: Cluster, wishes: Wishes) -> tuple[str, str]:
    choice = f"{chosen.cluster} ({chosen.layout.world} ranks)"
    if not cluster.mixed:
        return choice, "the whole cluster; one kind of device, so no rank waits for a slower kind"
    pace = ", ".join(f"{name} {_ms(seconds)}" for name, seconds in sorted(chosen.time.by_device.items()))
    text = (
        f"compute and optimizer per step: {pace}; {chosen.time.slowest} sets the pace, as all ranks take equal "
        "micro-batches"
    )
    if wishes.all_devices:
        return choice, f"{text}; all devices are used, as requested"
    best: dict[str, Candidate] = {}
    for item in candidates:
        if str(item.cluster) != str(chosen.cluster) and item.fits:
            known = best.get(str(item.cluster))
            if known is None or item.time.total < known.time.total:
                best[str(item.cluster)] = item
    rest = ", ".join(
        f"{name} alone {_ms(item.time.total)}" if name != str(cluster) else f"all {_ms(item.time.total)}"
        for name, item in best.items()
    )
    return choice, f"{_ms(chosen.time.total)} per step, against {rest or 'nothing else that fits'}; {text}"


def _ep_reason(chosen: Candidate, candidates: list[Candidate], wishes: Wishes) -> tuple[str, str]:
    layout = chosen.layout
    choice = f"ep {layout.ep}"
    experts = chosen.cost.expert
    text = (
        f"{experts / 1e6:.0f} M of {chosen.cost.expert_total / 1e6:.0f} M expert parameters per rank; exchanging slots "
        f"costs {_ms(chosen.time.exchange)} and {_gb(chosen.time.bytes_exchanged)} per rank and step"
    )
    if wishes.ep:
        return choice, f"as requested; {text}"
    others = [
        f"ep {item.layout.ep}: {_ms(item.time.total)}, {_gb(item.memory.peak)}{'' if item.fits else ' (does not fit)'}"
        for item in sorted(_alternatives(chosen, candidates, same=("cluster", "stage")), key=lambda c: c.layout.ep)
    ]
    return choice, f"{text}; against {'; '.join(others)}" if others else text


def _stage_reason(chosen: Candidate, candidates: list[Candidate], wishes: Wishes) -> tuple[str, str]:
    choice = f"ZeRO-{chosen.layout.stage}"
    own = f"{_ms(chosen.time.total)}, {_gb(chosen.memory.peak)}"
    if wishes.stage:
        return choice, f"as requested; {own}"
    others = [
        f"stage {item.layout.stage}: {_ms(item.time.total)}, {_gb(item.memory.peak)}"
        f"{'' if item.fits else ' (does not fit)'}"
        for item in sorted(_alternatives(chosen, candidates, same=("cluster", "ep")), key=lambda c: c.layout.stage)
    ]
    why = "stage 0 is refused (its gradient norm is wrong with sharded experts)"
    return choice, f"{own}; against {'; '.join(others)}; {why}"


def _micro_reason(chosen: Candidate, costs: Costs, wishes: Wishes) -> tuple[str, str]:
    layout = chosen.layout
    choice = f"micro-batch {layout.micro} x {layout.accumulation} accumulation"
    text = f"{layout.batch} samples per step over {layout.world} ranks"
    if wishes.micro:
        return choice, f"as requested; {text}"
    if layout.accumulation == 1:
        text += "; the largest micro-batch fits, so weights are read and gradients reduced once per step"
    else:
        text += (
            f"; twice the micro-batch does not fit {min(p.device.usable for p in chosen.cluster.pools) / 1e9:.1f} GB"
        )
    if layout.micro > 1 and layout.micro % 2 == 0:
        half = dataclasses.replace(layout, micro=layout.micro // 2, accumulation=2 * layout.accumulation)
        other = evaluate(costs, chosen.cluster, half, chosen.recompute)
        text += f"; half of it would take {_ms(other.time.total)}"
    return choice, text


def _precision_reason(chosen: Candidate, costs: Costs) -> tuple[str, str]:
    layout = chosen.layout
    if layout.precision == "fp32":
        return "fp32", "as requested; matrix products run at the fp32 rate without TF32"
    other = evaluate(costs, chosen.cluster, dataclasses.replace(layout, precision="fp32"), chosen.recompute)
    text = (
        f"fp32 would take {_ms(other.time.total)} and {_gb(other.memory.peak)}"
        f"{'' if other.fits else ' (does not fit)'}; router logits and master weights stay fp32"
    )
    return layout.precision, text
