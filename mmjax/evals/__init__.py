"""Few-shot evaluation: tasks, the metrics as pure functions, and the reports."""

from mmjax.evals.check import check_evals
from mmjax.evals.config import EvalConfig
from mmjax.evals.report import Sample, by_shots, table, write_json
from mmjax.evals.run import Results, run_evals

__all__ = ["EvalConfig", "Results", "Sample", "by_shots", "check_evals", "run_evals", "table", "write_json"]
