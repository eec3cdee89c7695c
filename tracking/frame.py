"""A pandas table whose texts a notebook shows whole."""

from __future__ import annotations

import pandas


class ReadableFrame(pandas.DataFrame):
    """A DataFrame like any other, except that a notebook shows its texts whole, where pandas cuts them at 50 characters."""

    @property
    def _constructor(self) -> type[ReadableFrame]:
        return ReadableFrame

    def _repr_html_(self) -> str | None:
        with pandas.option_context("display.max_colwidth", None):
            return super()._repr_html_()
