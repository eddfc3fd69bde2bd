"""The stages of a cell, published in the store under a hash of their inputs."""
