"""CUE, the Universal Compositional Embedder: text, images, audio and video as spherical cones in one space."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from configuration_cue import CUEConfig

from .cones import (
    Cone,
    angle,
    check_cone,
    complement,
    containment_margin,
    containment_probability,
    contains,
    join,
    join_many,
    log_volume,
    meet,
    meet_hull,
    membership_margin,
    overlaps,
    pairwise_angle,
    pairwise_containment_margin,
    pairwise_containment_probability,
    pairwise_contains,
    pairwise_overlaps,
)
from .index import CUEIndex
from .modeling_base import CUEOutput, CUEPreTrainedModel
from .modeling_cue import CUEModel
from .processing_cue import CUEProcessor
from .zero_shot import ZeroShotClassifier

# The only registration point: with the package imported the Auto classes find CUE, and what is saved carries the
# code and the `auto_map` by which it loads without the package.
AutoConfig.register("cue", CUEConfig)
AutoModel.register(CUEConfig, CUEModel)
AutoProcessor.register(CUEConfig, CUEProcessor)
CUEConfig.register_for_auto_class()
CUEModel.register_for_auto_class("AutoModel")
CUEProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "CUEConfig",
    "CUEIndex",
    "CUEModel",
    "CUEOutput",
    "CUEPreTrainedModel",
    "CUEProcessor",
    "Cone",
    "ZeroShotClassifier",
    "angle",
    "check_cone",
    "complement",
    "containment_margin",
    "containment_probability",
    "contains",
    "join",
    "join_many",
    "log_volume",
    "meet",
    "meet_hull",
    "membership_margin",
    "overlaps",
    "pairwise_angle",
    "pairwise_containment_margin",
    "pairwise_containment_probability",
    "pairwise_contains",
    "pairwise_overlaps",
]
