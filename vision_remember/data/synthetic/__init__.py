"""Seeded, endless synthetic documents: one file per family, rendered with Pillow and matplotlib's bundled fonts.

A page is named by (family, split, seed, index) and nothing else: the same name gives the same bytes on one installation. `train` and
`test` share fonts and differ in content; `shift` also has fonts and sizes that the other two never show.
"""

from vision_remember.data.synthetic.pages import COARSE, FINE, Page, families, make_page
from vision_remember.data.synthetic.samples import SyntheticSamples, write_dataset

__all__ = ["COARSE", "FINE", "Page", "SyntheticSamples", "families", "make_page", "write_dataset"]
