"""Federated learning: asynchronous methods and their baselines, replayed on a virtual clock."""
