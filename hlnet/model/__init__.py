"""The network, and what it costs.

base               what all networks have in common
transform          size, crop and normalisation of images
trunk              the early stages of any timm model
branches           one level of branches on stacked weights
shared             what all classes share before the tree, and a row a class on it
hierarchical       the network: trunk and branches
plain              the timm model itself, for comparison
presets            the paper's networks by name; ``create_model``; timm's registry
provenance         where weights came from, and what was fitted to them
fast/              the inference form
cost               parameters, multiply-accumulates, bytes
latency            milliseconds
split_points       costs by where the trunk ends
"""
