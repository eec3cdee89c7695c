"""A real language model on text that comes with Python, where there is no data folder."""

from __future__ import annotations

from workbench.datasets.corpora import pydoc
from workbench.datasets.language import LanguageTask


class PythonManual(LanguageTask):
    """Python's own manual: four of five topics to calibrate on, every fifth to test; the model comes in a package."""

    dataset = "python_manual"
    models = ("smollm2-135m", "hub")
    title = "The Python manual"
    kind = "language_model"
    embedded = False

    note = "The text differs a little between versions of Python."

    def texts(self) -> tuple[str, str]:
        return pydoc(self.params.judged)
