"""The explorer: choose a method and a task, change every parameter, run, pause, stop and compare, in a notebook cell."""

from workbench.explorer.entry import explore as explore
