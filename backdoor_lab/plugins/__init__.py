"""Plug-ins: triggers, defenses, data sets and networks in a user's own file or package."""
