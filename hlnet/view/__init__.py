"""Looking inside a network.

branch_maps        feature maps of branches
class_activation   class activation maps
look               what ``hlnet show`` shows
pictures           ... drawn
page               ... on a page
live               what the page of ``hlnet app`` asks of a network
app                ... served
"""
