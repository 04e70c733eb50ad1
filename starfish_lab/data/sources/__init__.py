"""Where images come from, one file a source: listing(choice, role) → Listing, role 'evaluation' or 'calibration'.

A source that keeps no images apart for calibration returns None for that role: they are drawn from the others.
"""
