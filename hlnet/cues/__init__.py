"""Hints from outside about an image's class.

cue                what a cue names, and how strongly it acts
policy             how cues act that do not say it themselves
table              which cues an image has
effect             gains, factors and shifts for one batch
apply              logits of a batch under cues
hard               hard cues: only the named classes run
prior              how frequent classes are
files              cues as users write them, on the command line and in files
rows               CSV and JSON lines
words              cues from words and sounds
embedding          cues from the likeness of texts and names
oracle             cues from labels, right and wrong
cue_aware          training with cues
"""
