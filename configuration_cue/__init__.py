"""The configuration of CUE, importable without torch."""

from .configuration_cue import CUEConfig

__all__ = ["CUEConfig"]
