"""Decoupled learning: modules of a network trained apart, in step or not, and the methods this is compared with."""
