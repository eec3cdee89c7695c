"""QuIP: a random rotation spreads every weight over all others, then columns are rounded with feedback.

Chee, Cai, Kuleshov & De Sa, "QuIP: 2-Bit Quantization of Large Language Models With Guarantees", NeurIPS 2023, arXiv:2307.13304; the
rotation by signs and a Hadamard matrix: Tseng et al., "QuIP#", ICML 2024, arXiv:2402.04396.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from workbench.llm.feedback import damped, feedback_matrix, required, round_with_feedback
from workbench.llm.formats_grid import HUGE, TINY
from workbench.llm.formats_incoherent import pack_incoherent, rotate
from workbench.llm.packed import Packed
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context

GAUSSIAN_STEP = {2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}
"""Step, in standard deviations, of the uniform quantiser of 2^b levels with the least squared error on a Gaussian (Max, IRE Transactions on
Information Theory, 1960; from 6 bits on by the same condition)."""


@dataclass(frozen=True)
class QuIP:
    """Incoherence processing and LDLQ (Chee et al. 2023, Alg. 1 to 3).

    ``W <- U_p W D U_q^T`` and ``H <- U_q D^-1 H D^-1 U_q^T`` with random orthogonal U, so that no weight and no input stands out; then
    columns are rounded with feedback to one uniform grid for the whole matrix.

    Args:
        bits: 2 to 8.
        rho: the grid reaches from -rho to rho root mean squares of W (paper: 2.4). 0: the range that suits a Gaussian best, which rotated
            weights are nearly: 1.5 at 2 bits, 2.1 at 3, 2.5 at 4.
        rescale: ``D_j = (H_jj / |W_j|^2)^(1/4)`` first (paper, Alg. 1), which evens out errors of inputs of different size; the factors are
            stored in fp16 and billed.
        damping: added to the diagonal of H, as a share of its mean.

    The signs of both rotations are drawn from the generator and stored, one bit for each input and output.
    """

    bits: int = 2
    rho: float = 0.0
    rescale: bool = True
    damping: float = 0.01
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        (hessian,) = required("QuIP", stats, "hessian")
        weight, hessian = weight.float(), damped(hessian, self.damping)
        p, q = weight.shape
        back = None
        if self.rescale:
            norms = weight.square().sum(0).clamp(min=torch.finfo(torch.float32).tiny)
            d = (hessian.diagonal() / norms).pow(0.25)
            d = d / d.log().mean().exp()  # a common factor changes nothing, and fp16 has to hold 1/d
            back = (1 / d).clamp(TINY, HUGE).half().float()
            weight, hessian = weight / back, hessian * back * back[:, None]
        rows, columns = (torch.randint(2, (n,), generator=generator).to(weight) * 2 - 1 for n in (p, q))
        weight = rotate(rotate(weight, columns).T, rows).T.contiguous()
        hessian = rotate(rotate(hessian, columns).T, columns)
        step, middle = self._step(weight), (2**self.bits - 1) / 2

        def nearest(k: int, w: Tensor) -> Tensor:
            return ((w / step + middle).round_().clamp_(0, 2**self.bits - 1) - middle) * step

        rounded = round_with_feedback(weight, feedback_matrix(hessian, self.damping * 1e-2), nearest)
        return pack_incoherent((rounded / step + middle).round().long(), step, self.bits, rows, columns, back)

    def _step(self, weight: Tensor) -> Tensor:
        rms = weight.square().mean().sqrt().clamp(min=TINY)
        return rms * (2 * self.rho / (2**self.bits - 1) if self.rho else GAUSSIAN_STEP[self.bits])


class QuIPCompression(Compression):
    """A random rotation spreads every weight over all others, then columns are rounded with feedback."""

    id, title, family, paper = "quip", "QuIP", "compression", "arXiv:2307.13304"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {"bits": 2}}

    class Params(Compression.Params):
        rho: float = Field(0.0, ge=0, le=10, description="range of the grid in root mean squares of the weights; 0 = best for a Gaussian")
        rescale: bool = Field(True, description="even out inputs of different size before rotating")
        damping: float = Field(0.01, gt=0, le=10, description="added to the diagonal of the inputs' second moment, share of its mean")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> QuIP:
        p = self.params
        return QuIP(p.bits, p.rho, p.rescale, p.damping)
