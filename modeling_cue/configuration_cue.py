# Saving a model overwrites this bridge, beside it, with the real file: a checkpoint needs no package.
from configuration_cue.configuration_cue import CUEConfig as CUEConfig
