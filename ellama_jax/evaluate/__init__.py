"""Judging: scorer, tasks, scorecards, the merge trade-off."""
