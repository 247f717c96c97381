"""Where class trees come from.

wordnet            WordNet's hypernyms
cluster            features, classifier weights or confusions
controls           balanced and random trees
levels             a hierarchy cut to a network's few levels
budget             ... within a budget, with cheap experts
shape              ... as the user asks for
"""
