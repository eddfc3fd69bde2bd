"""The stages of a cell that are published in the store, each with what decides it."""
