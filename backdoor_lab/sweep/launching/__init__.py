"""How cells are run: in this process, in workers on this machine, or by a launcher."""
