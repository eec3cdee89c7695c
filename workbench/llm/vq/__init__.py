"""Vector quantisation of weight matrices: k-means codebooks, column orders, block scales, normal-float levels."""

from __future__ import annotations

from workbench.llm.vq.kmeans import KMeans, assign, kmeans
from workbench.llm.vq.normal_float import normal_float
from workbench.llm.vq.ordering import order_columns
from workbench.llm.vq.scales import BlockScales, block_scales

__all__ = ["BlockScales", "KMeans", "assign", "block_scales", "kmeans", "normal_float", "order_columns"]
