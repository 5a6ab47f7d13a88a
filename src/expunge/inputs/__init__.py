"""Whatever people hold, models with their data, in the one form that methods and audits take."""

from expunge.inputs.columns import with_columns
from expunge.inputs.fitting import Fitted, fitted

__all__ = ["Fitted", "fitted", "with_columns"]
