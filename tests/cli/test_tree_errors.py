"""What ``hlnet build-tree`` and ``hlnet tree`` refuse: each in one line that names it, before anything is written."""

import pytest
from helpers import command_line, tree_material
from helpers.tree_material import SMALL

failing = command_line.failing
at = tree_material.at

#: What each method does not look at; a value is added where the option takes one.
SHAPE, CLUSTER = "--nodes=2,3 --budget=20M", "--by=features --linkage=ward --model={full}"
NARROW, NETWORK = "--max-children=5 --groups={groups}", "--network=resnet18"
TRUNK = (
    "--backbone=resnet50 --split-point=1 --pretrained --trunk-weights={trunk} --backbone-arg=a=1 --img-size=64 "
    "--mean=0.5 --std=0.5 --grid=2"
)
WORDNET, LLM = "--wordnet={tiny} --download", "--prompt=p.txt --answer={answer} --llm-model=m --base-url=http://h/v1"
UNSEEN = {
    "{n}": f"{CLUSTER} {TRUNK} {WORDNET} {LLM} {NETWORK}",
    "{n} --method parallel": f"{SHAPE} {NARROW} {CLUSTER} {TRUNK} {WORDNET} {LLM} {NETWORK}",
    "{n} --method balanced": f"{NARROW} {CLUSTER} {TRUNK} {WORDNET} {LLM} {NETWORK}",
    "{n} --method random": f"{NARROW} {CLUSTER} {TRUNK} {WORDNET} {LLM} {NETWORK}",
    "{n} --method wordnet --wordnet {tiny}": f"{CLUSTER} {TRUNK} {LLM} {NETWORK}",
    "{n} --method llm --answer {answer}": f"{NARROW} {CLUSTER} {WORDNET} {NETWORK} --grid=2 --img-size=64 "
    "--backbone=resnet50 --llm-model=m --base-url=http://h/v1",
    f"{{photos}} --method cluster {SMALL}": f"--model={{full}} {WORDNET} {LLM} {NETWORK}",
    "{plain} --method cluster --by weights": f"--model={{full}} {TRUNK} {WORDNET} {LLM} {NETWORK}",
    "{photos} --method cluster --by confusions --model {full} --workers 0": f"{TRUNK} {WORDNET} {LLM} {NETWORK}",
}


@pytest.mark.parametrize("line, options", UNSEEN.items(), ids=UNSEEN.keys())
def test_options_that_are_not_looked_at_are_refused(failing, tmp_path, line, options):
    taken = []
    for option in options.split():
        code, out, err = failing(f"build-tree {line} {option} --out {{new}}")
        told = err.startswith("hlnet: ") and len(err.splitlines()) == 1 and option.partition("=")[0] in err
        if (code, out) != (2, "") or not told or list(tmp_path.iterdir()):
            taken.append(option)
        (tmp_path / "new.json").unlink(missing_ok=True)
    assert taken == []


# Exit code, command line, and what the message must name.
ERRORS = """
2 | build-tree | SOURCE & --out
2 | build-tree {n} | --out
2 | build-tree --out {new} | SOURCE
2 | build-tree {n} --method llm --answer {answer} | --out
2 | build-tree {n}x --out {new} | there is no class tree & n.jsonx
2 | build-tree {image} --out {new} | .png & .json
2 | build-tree {full} --out {new} | best.safetensors
1 | build-tree {binary} --out {new} | binary.txt
2 | build-tree digits --out {new} | 'digits' has no nesting & --method
2 | build-tree digitz --method random --out {new} | 'digitz'
2 | build-tree preset:imagenet1 --out {new} | preset:imagenet1' & Did you mean 'imagenet1k'
2 | build-tree preset:Imagenett --method balanced --out {new} | Did you mean 'imagenette'
2 | build-tree preset: --out {new} | preset:' & imagenette
2 | build-tree '' --out {new} | ''
2 | build-tree {n} --out new.cvs | '.cvs'. Did you mean '.csv'
2 | build-tree {n} --out {photos} | photos & .tree.json
1 | build-tree {n} --out {image}/x.json | cannot write & file and no folder
2 | build-tree {n} --nodes 2,3 --levels 3 --out {new} | nodes fix & leave levels and budget out
2 | build-tree {n} --nodes 2,3 --budget 20M --out {new} | nodes fix & leave levels and budget out
2 | build-tree {n} --nodes 2,three --out {new} | --nodes '2,three' & whole numbers
2 | build-tree {n} --nodes 3,2 --out {new} | nodes 3,2 & not decrease
2 | build-tree {n} --nodes 0,2 --out {new} | nodes 0,2 & positive
2 | build-tree {n} --nodes 2,7 --out {new} | nodes 2,7 & 6 classes
2 | build-tree {n} --method balanced --nodes 3,2 --out {new} | nodes 3,2 & not decrease
2 | build-tree {n} --method random --nodes 7 --out {new} | nodes 7 & 6 classes
2 | build-tree {n} --method wordnet --wordnet {tiny} --nodes 7 --out {new} | nodes 7 & 6 classes
2 | build-tree {n} --method llm --answer {answer} --nodes 7 --out {new} | 7 & 6 classes
2 | build-tree {n} --method llm --answer {answer} --levels 1 --out {new} | levels
1 | build-tree {n} --levels 65 --out {new} | 65 & 64
2 | build-tree {n} --network test_resnet --budget 25 --out {new} | budget '25' & 15M & 4.2GMAC & 40MB
2 | build-tree {n} --network test_resnet --budget lots --out {new} | budget 'lots'
2 | build-tree {n} --budget 9M --out {new} | budget of 9M & too small & 6 classes & 9.963M
2 | build-tree {n} --budget 20M --network resnt18 --out {new} | 'resnt18' & Did you mean 'resnet18'
2 | build-tree {n} --max-children 2 --out {new} | 2 children & 3 nodes at level 1
2 | build-tree {n} --groups {root}/none.yaml --out {new} | none.yaml
2 | build-tree {n} --groups {list} --out {new} | list.txt' must hold a mapping
2 | build-tree {list} --nodes 2 --groups {new}.yaml --out {new} | new.json.yaml
2 | build-tree preset:cifar10 --groups {groups} --out {new} | groups.yaml', 'home' & no class or node 'saw'
2 | build-tree {list} --method cluster SMALL --out {new} | no data folder & list.txt
2 | build-tree {photos} --method cluster SMALL --linkage wart --out {new} | 'wart' & ward
2 | build-tree {photos} --method cluster SMALL --nodes 7 --out {new} | nodes 7 & 6 classes
2 | build-tree {photos} --method cluster SMALL --std 0 --out {new} | std
2 | build-tree {photos} --method cluster SMALL --mean 1,2 --out {new} | mean (1.0, 2.0) & 3 numbers
2 | build-tree {photos} --method cluster SMALL --split-point 9 --out {new} | 9
2 | build-tree {photos} --method cluster --backbone test_resnt --out {new} | 'test_resnt' & Did you mean 'test_resnet'
2 | build-tree {photos} --method cluster SMALL --backbone-arg depth --out {new} | --backbone-arg 'depth' & name=value
2 | build-tree {photos} --method cluster --by confusions --out {new} | --by confusions & --model
2 | build-tree {photos} --method cluster --by confusions --model {root}/no.safetensors --out {new} | no.safetensors
1 | build-tree {photos} --method cluster --by confusions --model {trunk} --out {new} | trunk.safetensors & not one of
2 | build-tree {photos} --method cluster --by confusions --model {full} --linkage ward --workers 0 --out {new} | 'ward'
2 | build-tree {full} --method cluster --by weights --out {new} | best.safetensors' & confusions
2 | build-tree {list} --method cluster --by weights --out {new} | --by weights & --pretrained
1 | build-tree {one} --method cluster --by weights --backbone test_resnet --trunk-weights {rows} --out {new} | (6, 96)
2 | build-tree {gap} --method cluster --by weights --trunk-weights {rows} --out {new} | must be numbered from 0
2 | build-tree {n} --method wordnet --wordnet {photos} --out {new} | no WordNet dictionary & photos' & data.noun
2 | build-tree {n} --method wordnet --wordnet {new} --out {new} | no WordNet dictionary
2 | build-tree {n} --method llm --out {new} | --prompt & --answer & --llm-model
2 | build-tree {n} --method llm --base-url http://h/v1 --out {new} | --llm-model
2 | build-tree {n} --method llm --answer {new} --out {new} | --answer & new.json' cannot be read
2 | build-tree {n} --method llm --answer {binary} --out {new} | --answer & not a text file
1 | build-tree {n} --method llm --answer {refusal} --out {new} | cannot be used & I'm sorry, I cannot
1 | build-tree {n} --method llm --prompt {root} | cannot write & folder
2 | tree show {n}x | there is no class tree
2 | tree show preset:cifar1 | Did you mean 'cifar10'
2 | tree show {n} --classes beest | 'beest' & Did you mean 'beast'
2 | tree show {n} --classes 6-9 | '6-9' & 0-5
2 | tree show {n} --svg new.png | --svg 'new.png' & .svg
2 | tree show {n} --png new.svg | --png 'new.svg' & .png
2 | tree show {n} --html new.svg | new.svg & .html
2 | tree show {n} --svg new.svg --html new.svg | new.svg & .html
1 | tree show {trunk} | trunk.safetensors & not one of hlnet's
2 | tree show {root}/no.safetensors | no model file
1 | tree show {binary} | binary.txt
2 | tree check {n} --network resnt18 | Did you mean 'resnet18'
2 | tree check {n}x | there is no class tree
1 | tree compare {n} preset:imagewoof | share 0
1 | tree compare {one} {n} | share 1
2 | tree compare {n} {n}x | there is no class tree
2 | tree convert {n} new.cvs | Did you mean '.csv'
2 | tree convert {n} new.json --to newik | 'newik' & Did you mean 'newick'
2 | tree convert {n} new.json --to newick | newick & .nwk
2 | tree convert {n} {photos} | photos' is there
1 | tree convert {n} new.json --levels 2 | 3 levels deep
2 | tree convert {n}x new.json | there is no class tree
"""


@pytest.mark.parametrize("case", ERRORS.strip().splitlines(), ids=str)
def test_errors_are_one_line(failing, tmp_path, case):
    code, line, words = case.replace("SMALL", SMALL).split(" | ")
    found, out, err = failing(line)
    *hints, told = err.splitlines() or [""]
    assert told.startswith("hlnet: ") and all(word in told for word in words.split(" & ")), told
    assert (found, out) == (int(code), "") and "--debug" not in told and not any("hlnet:" in hint for hint in hints)
    assert not list(tmp_path.iterdir())  # nothing is written
