"""Runs cells: in this process, in workers on this machine, or with a launcher such as submitit."""
