"""The audits' statistics: pure functions of arrays, which know no model. docs/research/audit.md explains them."""

from expunge.metrics.difficulty import Difficulty, difficulty_calibrated_scores
from expunge.metrics.distances import ParameterChange, activation_distance, parameter_change, update_leakage
from expunge.metrics.epsilon import EpsilonBound, epsilon_bound, epsilon_ceiling, epsilon_lower_bound
from expunge.metrics.klom import Klom, klom
from expunge.metrics.lira import Lira, example_aucs, likelihood_ratios, lira
from expunge.metrics.membership import Rate, auc, auc_interval, clopper_pearson, roc, tpr_at_fpr
from expunge.metrics.planning import Plan, pass_rate, plan
from expunge.metrics.rank_test import PercentileRanks, percentile_ranks
from expunge.metrics.relearning import relearn_statistic
from expunge.metrics.scores import cross_entropy, logit_scaled_confidence
from expunge.metrics.tail_counts import Tails, tails
from expunge.metrics.verdict import ScoreTest, score_test

__all__ = [
    "Difficulty",
    "EpsilonBound",
    "Klom",
    "Lira",
    "ParameterChange",
    "PercentileRanks",
    "Plan",
    "Rate",
    "ScoreTest",
    "Tails",
    "activation_distance",
    "auc",
    "auc_interval",
    "clopper_pearson",
    "cross_entropy",
    "difficulty_calibrated_scores",
    "epsilon_bound",
    "epsilon_ceiling",
    "epsilon_lower_bound",
    "example_aucs",
    "klom",
    "likelihood_ratios",
    "lira",
    "logit_scaled_confidence",
    "parameter_change",
    "pass_rate",
    "percentile_ranks",
    "plan",
    "relearn_statistic",
    "roc",
    "score_test",
    "tails",
    "tpr_at_fpr",
    "update_leakage",
]
