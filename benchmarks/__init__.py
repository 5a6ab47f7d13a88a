"""Measurements: what each method and choice does on real data, and what `unlearn` costs."""
