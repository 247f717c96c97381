"""Changing a trained network: cut it, merge cuts, add classes.

cut                an expert is a choice of rows
verify             proof that its weights and logits are the full network's
candidates         which experts keep to a budget
write              experts as files
merge              the union of experts
grow               new branches beside the old ones
graft_training     ... trained alone
graft              ... and put in their place
"""
