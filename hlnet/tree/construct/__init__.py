"""Construction of class trees.

wordnet            WordNet's hypernyms
cluster            features, classifier weights or confusions
baselines          balanced and random trees, which ignore what the classes are
levels             a hierarchy cut to a network's few levels
budget             ... within a budget, with cheap experts
shape              ... as the user asks for
"""
