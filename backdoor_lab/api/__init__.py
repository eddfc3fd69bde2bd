"""The public functions and classes of the package; import them from `backdoor_lab`. The modules of
this folder, like all others of the package, are internal."""
