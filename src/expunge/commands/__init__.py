"""What each command does, callable from Python: from specs and paths to files on disk.

`expunge train` is `train(...)`, and so for `forget`, `audit` and `demo`.
"""

from expunge.commands.audit import audit
from expunge.commands.demo import demo
from expunge.commands.forget import forget
from expunge.commands.full_audit import full_audit
from expunge.commands.sources import Sources
from expunge.commands.train import Training, train
from expunge.report.record import Report

__all__ = ["Report", "Sources", "Training", "audit", "demo", "forget", "full_audit", "train"]
