"""`evaluate.load("metrics/cue_retrieval")`: the retrieval metrics of CUE, which must be installed."""

from modeling_cue.training.evaluate_metrics import RetrievalMetric as RetrievalMetric
