"""What patterns matrices show, what ordering their columns does to them, and which shape each gets under a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.llm.architecture import layout_of
from workbench.llm.reallm import ReALLM
from workbench.llm.reallm_identity import VectorCode
from workbench.llm.reallm_plan import default_candidates
from workbench.llm.vq.ordering import order_columns, permute, smoothness
from workbench.method import Context
from workbench.spec import resolve
from workbench.studies.reallm.settings import Scale

if TYPE_CHECKING:
    import pandas

ALL = "all together"


def prepared(scale: Scale) -> Any:
    """The task, set up on the CPU."""
    job = resolve(task=scale.task, task_params=scale.task_params, method="uncompressed", device="cpu")
    job.task.setup(Context(torch.device("cpu"), 0))
    return job.task


def matrices(model: nn.Module, blocks: tuple[int, ...]) -> dict[str, Tensor]:
    """The matrices of some decoder blocks by short name, such as ``0 q_proj``; negative numbers count from the end."""
    layout = layout_of(model)
    found = {}
    for index in dict.fromkeys(i % len(layout.names) for i in blocks):
        for name in layout.names[index]:
            found[f"{index} {name.rpartition('.')[2]}"] = model.get_submodule(name).weight.detach().float()
    return found


def shuffled(weight: Tensor, seed: int = 0) -> Tensor:
    """The columns of each block of rows in random order: what an order that sees no pattern gives."""
    generator = torch.Generator().manual_seed(seed)
    blocks = order_columns(weight[:, :2]).shape[0]
    return permute(weight, torch.stack([torch.randperm(weight.shape[1], generator=generator) for _ in range(blocks)]))


def pattern_table(found: dict[str, Tensor], bits: int, dim: int, group: int) -> pandas.DataFrame:
    """A row a matrix: tails, spectrum, smoothness, and relative errors of vector quantisation without and with an order of columns.

    Smoothness is the root mean square difference of neighbouring columns over the standard deviation: 1.41 for independent
    entries. ``price``: bits a weight of the order; ``gain``: what the lower error is worth in bits, ``log2`` of the ratio of errors.
    """
    import pandas

    rows = []
    for name, weight in found.items():
        order = order_columns(weight)
        energy = torch.linalg.svdvals(weight).square()
        top = max(1, min(weight.shape) // 32)
        code = VectorCode(bits, dim, group=group)
        plain, ordered = (ReALLM(code, permute=permute_)(weight) for permute_ in ("never", "always"))
        errors = [float((weight - packed.dequantise()).norm() / weight.norm()) for packed in (plain, ordered)]
        price = ordered.bpw() - plain.bpw()
        gain = float(torch.tensor(errors[0] / errors[1]).log2()) if errors[1] else 0.0
        centred = (weight - weight.mean()) / weight.std()
        rows.append({"matrix": name, "shape": f"{weight.shape[0]}×{weight.shape[1]}", "kurtosis": float(centred.pow(4).mean()),
                     "energy, top 1/32": float(energy[:top].sum() / energy.sum()),
                     "smoothness": smoothness(weight), "ordered": smoothness(permute(weight, order)),
                     "shuffled": smoothness(shuffled(weight)),
                     "error": errors[0], "error, ordered": errors[1], "price [bit]": price, "gain [bit]": gain, "pays": gain > price})
    return pandas.DataFrame(rows)


def shapes(found: dict[str, Tensor], budget: float, group: int) -> pandas.DataFrame:
    """The shape that each matrix gets when all share ``budget`` bits a weight, its bits and squared error; the last row is all together."""
    import pandas

    plan = ReALLM(VectorCode(group=group)).plan(found.items(), budget)
    rows = [_row(name, found[name], chosen) for name, chosen in plan.items()]
    return pandas.DataFrame([*rows, {"matrix": ALL, **_mean(found, rows)}])


def single_shapes(found: dict[str, Tensor], group: int) -> dict[str, tuple[float, float]]:
    """Bits a weight and mean squared error by shape, where all matrices have the same one, without order."""
    result = {}
    for candidate in default_candidates(ReALLM(VectorCode(group=group), permute="never")):
        rows = [_row(name, weight, candidate) for name, weight in found.items()]
        mean = _mean(found, rows)
        result[f"{rows[0]['shape']}, rank {candidate.rank}"] = mean["bits"], mean["squared error"]
    return result


def _row(name: str, weight: Tensor, chosen: ReALLM) -> dict[str, Any]:
    packed = chosen(weight, None, torch.Generator().manual_seed(0))
    error = float((weight - packed.dequantise()).square().sum() / weight.square().sum())
    return {"matrix": name, "shape": f"{chosen.code.bits} bits in vectors of {chosen.code.dim}", "rank": chosen.rank,
            "ordered": "permutation" in packed.tensors, "bits": packed.bpw(), "squared error": error}


def _mean(found: dict[str, Tensor], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Bits over all weights, and the error that the planner adds up, as a mean over matrices."""
    counts = [found[row["matrix"]].numel() for row in rows]
    return {"bits": sum(row["bits"] * n for row, n in zip(rows, counts, strict=True)) / sum(counts),
            "squared error": sum(row["squared error"] for row in rows) / len(rows)}


def views(weight: Tensor) -> dict[str, Tensor]:
    """A matrix as it is stored, with its columns ordered, and with them shuffled."""
    return {"as stored": weight, "ordered": permute(weight, order_columns(weight)), "shuffled": shuffled(weight)}


def view_table(pictures: dict[str, Tensor]) -> pandas.DataFrame:
    """What the pictures come to: smoothness of each."""
    import pandas

    return pandas.DataFrame([{"columns": name, "smoothness": smoothness(matrix)} for name, matrix in pictures.items()])
