"""settings.ini: its keys, their types and rules."""
