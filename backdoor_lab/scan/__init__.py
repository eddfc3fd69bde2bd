"""Scans a training set for poison, without ground truth and without a test set."""
