"""Everything between a file and a batch: one typed sample, one image decoder, four file layouts, one collator.

Importing this package imports nothing else, because `data.images` is open to every room and must stay light. Reading order:
`schema.py` (what a sample is), `records.py` (how a JSON record becomes one), `sources.py` (which files hold records), `mixture.py`,
`collator.py`; `check.py` lists everything wrong with a folder at once.
"""
