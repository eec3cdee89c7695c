"""Language models on a sample of C4 (Raffel et al., JMLR 2020, arXiv:1910.10683)."""

from __future__ import annotations

from workbench.datasets.corpora import c4
from workbench.datasets.language import LanguageTask


class C4(LanguageTask):
    """Pages of the web, 1,000 documents: four of five to calibrate on, every fifth to test."""

    dataset = "c4"
    models = ("smollm2-135m", "hub")
    title = "C4, a sample"
    kind = "language_model"
    embedded = False

    note = "A sample of training documents: perplexities do not compare with published ones, which are of the validation set."

    def texts(self) -> tuple[str, str]:
        return c4(self.params.judged)
