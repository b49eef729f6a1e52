"""Read corpora, write them as token files, and choose the tokens of each training step."""
