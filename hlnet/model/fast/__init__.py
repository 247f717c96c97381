"""The inference form: the same logits, faster.

optimize           ``optimize()`` and the network that it returns
fuse               the trunk, its norms, activations and sums folded in
kernels            convolutions with weights packed once
folding            what is linear in a block, put together
chunks             siblings' blocks, folded and packed
walk               the tree, walked in chunks of siblings
select             classes chosen at run time
weight_watch       whether the weights are still the same
"""
