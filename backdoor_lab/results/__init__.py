"""Records of sweeps: reading, checking, sealing, and the compact form of a finished sweep."""
