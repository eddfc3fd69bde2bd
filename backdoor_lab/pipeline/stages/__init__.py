"""The stages of a cell. Each is stored under a hash of its inputs."""
