"""Generated from `protos/` by `python protos/generate.py`; never edited."""
