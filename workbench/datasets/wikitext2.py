"""Language models on WikiText-2 (Merity, Xiong, Bradbury & Socher, ICLR 2017, arXiv:1609.07843)."""

from __future__ import annotations

from workbench.datasets.corpora import wikitext2
from workbench.datasets.language import LanguageTask


class WikiText2(LanguageTask):
    """Articles of Wikipedia, tokenised with rare words replaced: 2.1 million words to calibrate on, 0.24 million to
    test."""

    dataset = "wikitext2"
    models = ("smollm2-135m", "hub")
    title = "WikiText-2"
    kind = "language_model"
    embedded = False

    note = ("The file is the tokenised one, with spaces about punctuation and <unk> for rare words, as it is: "
            "perplexities do not compare with "
            "published ones, which are of the raw text.")

    def texts(self) -> tuple[str, str]:
        return wikitext2(self.params.judged)
