"""Analyses of records and the store: curves, separation, intervals, paired tests."""
