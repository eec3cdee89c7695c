"""Between the low-rank parts of a compressed model and LoRA or DoRA adapters of PEFT.

A compressed layer is a linear layer, so any adapter can be put on it as on any model (``peft.get_peft_model``). Here
the low-rank part itself becomes the adapter: ``y = code(x) + s (x A^T) B^T`` with ``s = alpha / r``, so A and B are
divided by ``sqrt(s)`` on their way.
"""

from __future__ import annotations

from typing import Any

import torch

from tracking.errors import UserError
from workbench.llm.compressed import Compressed
from workbench.llm.storage import libraries

ADAPTER = "default"


def to_peft(compressed: Compressed, alpha: float | None = None) -> Any:
    """A PEFT model over the code whose adapters are the low-rank parts; magnitudes make them DoRA. Its output is the
    compressed model's.

    ``compressed`` is changed: its layers keep the code alone until :func:`from_peft`. ``alpha``: LoRA's; ``None``
    gives a scaling of 1.
    """
    libraries("peft")
    from peft import LoraConfig, get_peft_model

    layers = {name: layer for name, layer in compressed.layers().items() if "low_rank.a" in layer.names}
    if not layers:
        raise UserError("No matrix has a low-rank part. Compress with a rank, or put an adapter of its own on the "
                        "model by peft.get_peft_model.")
    dora = ["magnitude" in layer.names for layer in layers.values()]
    if any(dora) != all(dora):
        raise UserError("Some matrices have a magnitude and some have none; adapters of PEFT are of one kind. "
                        "Compress them alike.")
    factors = {name: layer.take_factors() for name, layer in layers.items()}
    ranks = {name: len(f["low_rank.a"]) for name, f in factors.items()}
    pattern = {f"^{name.replace('.', chr(92) + '.')}$": r for name, r in ranks.items()}
    config = LoraConfig(r=max(ranks.values()), lora_alpha=alpha or max(ranks.values()), target_modules=list(layers), lora_dropout=0.0,
                        use_dora=all(dora), rank_pattern=pattern, bias="none",
                        alpha_pattern={key: alpha or r for key, r in pattern.items()})
    model = get_peft_model(compressed.model, config)
    wrapped = {name.removeprefix("base_model.model."): m for name, m in model.named_modules()}
    with torch.no_grad():
        for name, f in factors.items():
            layer, root = wrapped[name], wrapped[name].scaling[ADAPTER] ** 0.5
            layer.lora_A[ADAPTER].weight.copy_(f["low_rank.a"].float() / root)
            layer.lora_B[ADAPTER].weight.copy_(f["low_rank.b"].float() / root)
            if all(dora):
                layer.lora_magnitude_vector[ADAPTER].weight.copy_(f["magnitude"])
    return model


def from_peft(model: Any, compressed: Compressed) -> Compressed:
    """Take the adapters, as they were tuned, back into the layers of ``compressed`` as low-rank parts in fp16; the
    PEFT model is unwrapped."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and ADAPTER in module.lora_A:
            root = module.scaling[ADAPTER] ** 0.5
            factors = {"low_rank.a": module.lora_A[ADAPTER].weight * root, "low_rank.b": module.lora_B[ADAPTER].weight * root}
            if ADAPTER in module.lora_magnitude_vector:
                factors["magnitude"] = module.lora_magnitude_vector[ADAPTER].weight
            found[name.removeprefix("base_model.model.")] = {key: value.detach().clone() for key, value in factors.items()}
    compressed.model = model.unload()
    layers = compressed.layers()
    for name, factors in found.items():
        layers[name].give_factors(factors)
    return compressed
