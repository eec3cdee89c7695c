"""The project's pages, generated from the code and from executed studies: static HTML that opens without a network."""

from workbench.docs.build import build as build
