"""Measuring what unlearning did: accuracy and parameter change."""

from expunge.audit.accuracy import accuracy
from expunge.audit.parameter_change import last_layer, parameter_change

__all__ = ["accuracy", "last_layer", "parameter_change"]
