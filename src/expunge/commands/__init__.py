"""What each command does, callable from Python: from specs and paths to files on disk.

`expunge train` is `train(...)`, `expunge forget` is `forget(...)`, `expunge demo` is `demo(...)`.
"""

from expunge.commands.demo import demo
from expunge.commands.forget import Report, forget
from expunge.commands.sources import Sources
from expunge.commands.train import Training, train

__all__ = ["Report", "Sources", "Training", "demo", "forget", "train"]
