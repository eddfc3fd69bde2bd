"""An example of a plug-in: one trigger and one defense."""
