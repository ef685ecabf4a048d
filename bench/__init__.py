"""The benchmark: every op of fcnfast against what plain torch offers. Start with run.py."""
