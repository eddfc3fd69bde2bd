"""The command `python -m backdoor_lab.reports`, which rebuilds and prints the tables of sweeps."""
