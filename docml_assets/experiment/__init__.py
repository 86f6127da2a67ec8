"""An experiment: its folder, settings and functions, and the runs that are claimed and frozen from it."""
