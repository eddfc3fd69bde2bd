"""Analyses of records and stored outputs: curves, separation, intervals, paired tests."""
