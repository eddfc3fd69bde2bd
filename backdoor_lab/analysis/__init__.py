"""What is worked out from records and the store: curves, separation, intervals, paired tests."""
