"""Node representations of graphs, unsupervised and supervised."""
