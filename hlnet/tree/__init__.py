"""Class trees: trees of named nodes.

class_tree         ClassTree: levels of nodes; pruning is a choice of rows
nodes              a node, and what may be written for it
selection          what a user writes to name classes
synonyms           ... in other words than the tree's
dictionary         a WordNet dictionary
vocabulary         what words of English mean in a tree
hierarchy          a hierarchy of any depth, which levels are cut from
io                 reading and writing trees: JSON, YAML, folders, and by their formats
tables             ... CSV of paths or edges
delimited          ... rows, delimiters, comments and missing values of tables
headings           ... what a table's columns hold
lists              ... text lists, numbered or indented
label_files        ... label files of other tools
graphs             ... Newick, node-link and children objects
strict_yaml        YAML whose names stay as written
rename             other names for nodes
measures           comparing trees, and what is odd about one
picture            pictures and pages of trees
presets/           the trees that come with hlnet
construct/         where trees come from
llm/               ... and from a language model
"""
