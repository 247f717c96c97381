"""Labelled images.

pixels             an image as a network takes it: upright, opaque, 8 bits
images             images with labels, opened when they are asked for
sources            folders, digits, timm's sources
shards             WebDataset shards, read at random
sharded_images     ... with their splits and class names
image_files        image files named on the command line, found as they are needed
bursts             which images belong together
tree_data          images matched to the classes of a tree, transformed and batched
sampling           order and augmentation as functions of seed, epoch and image
features           a frozen trunk's features, computed once
feature_cache      ... and kept in files
"""
