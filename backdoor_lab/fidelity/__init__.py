"""Our methods beside their papers and their authors' code.

One YAML file per component in ``attacks/`` and ``defenses/`` holds, for each method (a choice of
``trigger=`` or ``defense=``), what decides its result: our value, the paper's, the authors' code's
with the place and the text that stands there. README.md here describes the format. The status of a
method follows from its rows by rule (rules.py), and our values are compared with the configuration
and the code (ours.py), so that the table cannot drift from what runs.
"""
