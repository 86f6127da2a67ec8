"""Tests mirror the source. This file makes `tests` this package: another distribution installs one of that name."""
