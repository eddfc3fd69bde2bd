"""Records as evidence: their seal, and the form in which a finished sweep is kept."""
