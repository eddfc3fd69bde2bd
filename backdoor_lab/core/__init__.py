"""What all other folders build on: errors, checks, random streams, files, the store."""
