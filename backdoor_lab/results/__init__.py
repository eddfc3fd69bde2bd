"""Records of sweeps: reading, checking, sealing, and the frozen form of a finished sweep."""
