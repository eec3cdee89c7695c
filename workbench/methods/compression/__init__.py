"""Compression of trained language models to a few bits a weight."""
