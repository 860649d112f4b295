"""`evaluate.load("metrics/cue_cones")`: the metrics of CUE's cones, which must be installed."""

from modeling_cue.training.evaluate_metrics import ConeMetric as ConeMetric
