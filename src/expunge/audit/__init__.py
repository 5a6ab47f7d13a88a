"""Measuring what unlearning did: whether the model forgot, what it cost, and how its updates are spread."""

from expunge.audit.accuracy import accuracy
from expunge.audit.audit_report import AuditReport, Correction, Relearning
from expunge.audit.default_audit import audit
from expunge.audit.difficulty import Difficulty, corrected_scores, difficulty_of
from expunge.audit.distances import activation_distance, zrf
from expunge.audit.leakage import update_leakage
from expunge.audit.membership import Rate, auc, auc_interval, roc, tpr_at_fpr
from expunge.audit.parameter_change import last_layer, parameter_change
from expunge.audit.placement import Placements, placements
from expunge.audit.relearning import relearn, relearn_network, relearn_statistic
from expunge.audit.scores import cross_entropy, logit_margin, modified_entropy
from expunge.audit.verdict import ScoreTest, score_test

__all__ = [
    "AuditReport",
    "Correction",
    "Difficulty",
    "Placements",
    "Rate",
    "Relearning",
    "ScoreTest",
    "accuracy",
    "activation_distance",
    "auc",
    "auc_interval",
    "audit",
    "corrected_scores",
    "cross_entropy",
    "difficulty_of",
    "last_layer",
    "logit_margin",
    "modified_entropy",
    "parameter_change",
    "placements",
    "relearn",
    "relearn_network",
    "relearn_statistic",
    "roc",
    "score_test",
    "tpr_at_fpr",
    "update_leakage",
    "zrf",
]
