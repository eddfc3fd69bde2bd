"""The command that rebuilds and prints the tables of sweeps."""
