"""AQLM: a few inputs together are a sum of codewords, chosen and tuned for the layer's output.

Egiazarian, Panferov, Kuznedelev, Frantar, Babenko & Alistarh, "Extreme Compression of Large Language Models via Additive
Quantization", ICML 2024, arXiv:2401.06118.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.llm.feedback import damped, required, row_errors
from workbench.llm.formats_additive import pack_additive, sum_codewords
from workbench.llm.packed import Packed
from workbench.llm.vq import kmeans
from workbench.llm.vq.sums import sums_by_code
from workbench.methods.compression._compression import Compression
from workbench.params import Field

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask
    from workbench.llm.calibration import LayerStatistics
    from workbench.method import Context


CONVERGED = 1e-10
"""Share of the first squared residual below which float32 leaves nothing to gain."""


@dataclass(frozen=True)
class AQLM:
    """Additive codebooks for the layer's output (Egiazarian et al. 2024, section 3): ``min tr(E H E^T)`` over codes, tables and scales.

    Start: residual k-means of the rows divided by their root mean squares. Then in turns: codes of one group of inputs after
    the other, all rows at once, by a beam search that replaces one code at a time; codebooks and scales, codes fixed.
    The paper takes the latter by Adam; it is a linear least-squares problem in the codebooks, so conjugate gradients are used here,
    which need no rate and never raise the objective. Tuning of whole blocks is not part of the quantiser.

    Args:
        codebooks, code_bits, d: M tables of ``2^code_bits`` codewords for d inputs: ``M code_bits / d`` bits a weight plus the tables.
        beam: partial solutions kept; 1 is coordinate descent.
        rounds: turns at most; they end when one improves the objective by less than ``tolerance`` (paper: 0.01).
        tuning: steps of conjugate gradients a turn.
    """

    codebooks: int = 2
    code_bits: int = 8
    d: int = 8
    beam: int = 1
    rounds: int = 4
    tuning: int = 8
    tolerance: float = 0.01
    damping: float = 1e-3
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    def __call__(self, weight: Tensor, stats: LayerStatistics | None = None, generator: torch.Generator | None = None) -> Packed:
        (hessian,) = required("AQLM", stats, "hessian")
        fit, _ = self.solve(weight.float(), hessian, generator)
        return pack_additive(fit.codes, fit.books, fit.scales, weight.shape[1])

    def solve(self, weight: Tensor, hessian: Tensor, generator: torch.Generator | None = None) -> tuple[AdditiveFit, list[float]]:
        """The fit, and its objective at the start and after each part of each turn; what is returned is rounded to fp16 already."""
        pad = -weight.shape[1] % self.d  # inputs that do not exist: no weight, no second moment
        fit = AdditiveFit(F.pad(weight, (0, pad)), F.pad(damped(hessian, self.damping), (0, pad, 0, pad)), self.d)
        fit.start(self.codebooks, 2**self.code_bits, generator)
        objective = [fit.objective()]
        for _ in range(self.rounds):
            before = objective[-1]
            fit.search(self.beam)
            objective.append(fit.objective())
            fit.tune(self.tuning)
            objective.append(fit.objective())
            if objective[-1] > (1 - self.tolerance) * before:
                break
        fit.books, fit.scales = fit.books.half().float(), fit.scales.half().float()
        fit.search(self.beam)
        return fit, objective


class AdditiveFit:
    """Codes (p, groups, M), codebooks (M, K, d) and row scales (p,) that stand for a matrix whose width is a multiple of d."""

    def __init__(self, weight: Tensor, hessian: Tensor, d: int) -> None:
        self.weight, self.hessian, self.d = weight, hessian, d
        self.scales = weight.square().mean(1).sqrt().clamp(min=torch.finfo(torch.half).tiny)

    def start(self, count: int, size: int, generator: torch.Generator | None) -> None:
        """Residual k-means: each table is trained on what those before it left."""
        residual = (self.weight / self.scales[:, None]).view(-1, self.d)
        books, codes = [], []
        for _ in range(count):
            found = kmeans(residual, size, generator=generator)
            residual = residual - found.codebook[found.codes]
            books.append(found.codebook)
            codes.append(found.codes.view(len(self.weight), -1))
        self.books, self.codes = torch.stack(books), torch.stack(codes, -1)

    def error(self) -> Tensor:
        """E = W - W' (p, q)."""
        return self.weight - self.scales[:, None] * sum_codewords(self.codes, self.books)

    def objective(self) -> float:
        return float(row_errors(self.error(), self.hessian).double().sum())

    def search(self, beam: int) -> None:
        """Better codes, one group of inputs after the other; the codes in force are among the candidates, so nothing gets worse."""
        error = self.error()
        for j in range(self.codes.shape[1]):
            here = slice(j * self.d, (j + 1) * self.d)
            h, own = self.hessian[here, here], error[:, here]
            gradient = error @ self.hessian[:, here]  # of half the objective with respect to the group's errors
            self.codes[:, j], error[:, here] = self._search_group(self.codes[:, j], own, gradient - own @ h, h, beam)

    def _search_group(self, codes: Tensor, error: Tensor, outside: Tensor, h: Tensor, beam: int) -> tuple[Tensor, Tensor]:
        """Codes (p, M) and errors (p, d) of least ``e h e^T + 2 e outside^T`` among those that a beam of changes of one code reaches."""
        squares = ((self.books @ h) * self.books).sum(-1)
        rows, s = torch.arange(len(codes), device=codes.device)[:, None], self.scales[:, None, None]
        codes, error, outside = codes[:, None].clone(), error[:, None], outside[:, None]  # (p, beam, …)
        for m, book in enumerate(self.books):
            without = error + s * book[codes[..., m]]
            pull = without @ h + outside
            # of the loss without - s c in place of without, what depends on c
            loss = torch.addcmul((-2 * s * pull) @ book.T, s.square(), squares[m])
            if beam == 1:
                word = _lowest(loss[:, 0])
            else:
                loss = (loss + ((pull + outside) * without).sum(-1, keepdim=True)).flatten(1)
                best = loss.topk(min(beam, loss.shape[1]), largest=False).indices
                parent, word = best // len(book), best % len(book)
                codes, without = codes[rows, parent].clone(), without[rows, parent]
            codes[..., m] = word
            error = without - s * book[word]
        return codes[:, 0], error[:, 0]

    def tune(self, steps: int) -> None:
        """Least squares in the codebooks by preconditioned conjugate gradients, then each row's scale exactly."""
        precondition = self._gather(self.scales[:, None].square() * self.hessian.diagonal().expand_as(self.weight))
        precondition = precondition.clamp(min=1e-6 * precondition.max())
        error = self.error()
        residual = self._gather(self.scales[:, None] * (error @ self.hessian))
        direction = residual / precondition
        first = power = (residual * direction).sum()
        for _ in range(steps):
            change = self.scales[:, None] * sum_codewords(self.codes, direction)
            image = change @ self.hessian
            curvature = (change * image).sum()
            # a constant may move from one table to another, so the problem is singular: once converged, rounding errors would run off
            if not curvature > 0 or not power > CONVERGED * first:
                break
            step = power / curvature
            self.books = self.books + step * direction
            residual = residual - step * self._gather(self.scales[:, None] * image)
            before, power = power, (residual * residual / precondition).sum()
            direction = residual / precondition + power / before * direction
        shape = sum_codewords(self.codes, self.books)
        image = shape @ self.hessian
        square = (shape * image).sum(1)
        self.scales = torch.where(square > 0, (self.weight * image).sum(1) / square.clamp(min=torch.finfo(torch.float32).tiny), self.scales)

    def _gather(self, values: Tensor) -> Tensor:
        """Sums (M, K, d) of ``values`` (p, q) over the places where each codeword is used: the transpose of :func:`sum_codewords`."""
        vectors, size = values.reshape(-1, self.d), self.books.shape[1]
        return torch.stack([sums_by_code(vectors, code.reshape(-1), size).float() for code in self.codes.unbind(-1)])


def _lowest(values: Tensor) -> Tensor:
    """Column (p, 1) of the least value of each row; NumPy's search along rows is several times as fast as PyTorch's on a CPU."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmin(1))[:, None]
    return values.argmin(1, keepdim=True)


class AQLMCompression(Compression):
    """A few inputs together are a sum of codewords, chosen and tuned for the layer's output."""

    id, title, family, paper = "aqlm", "AQLM", "compression", "arXiv:2401.06118"
    kinds = ("language_model",)
    example: ClassVar[dict[str, Any]] = {"task": "pydoc/tiny_llama", "params": {"bits": 2, "code_bits": 4, "d": 4, "rounds": 2}}

    class Params(Compression.Params):
        code_bits: int = Field(8, ge=2, le=12, description="bits of one code; a codebook has 2^code_bits codewords")
        d: int = Field(8, ge=1, le=16, description="inputs that share their codes; bits * d / code_bits codebooks are summed")
        beam: int = Field(1, ge=1, le=16, description="partial solutions kept in the search for codes")
        rounds: int = Field(4, ge=0, le=100, description="turns of codes and codebooks, at most")
        tuning: int = Field(8, ge=0, le=1000, description="steps on the codebooks a turn")

    params: Params

    def quantiser(self, task: LanguageTask, ctx: Context) -> AQLM:
        p = self.params
        return AQLM(max(1, round(p.bits * p.d / p.code_bits)), p.code_bits, p.d, p.beam, p.rounds, p.tuning)
