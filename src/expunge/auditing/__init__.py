"""Audits: what is measured on models to see whether they forgot. The statistics are in `expunge.metrics`."""

from expunge.auditing.default_audit import audit
from expunge.auditing.difficulty import difficulty_of
from expunge.auditing.forward import accuracy
from expunge.auditing.full_audit import FullAudit, full_audit
from expunge.auditing.references import ReferencePlan, References, load_references, train_references
from expunge.auditing.relearning import network_steps, relearn
from expunge.auditing.report import AuditReport, DifficultyCalibration, Relearning
from expunge.auditing.settings import AuditSettings

__all__ = [
    "AuditReport",
    "AuditSettings",
    "DifficultyCalibration",
    "FullAudit",
    "ReferencePlan",
    "References",
    "Relearning",
    "accuracy",
    "audit",
    "difficulty_of",
    "full_audit",
    "load_references",
    "network_steps",
    "relearn",
    "train_references",
]
