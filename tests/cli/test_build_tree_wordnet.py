"""``hlnet build-tree --method wordnet``: with a tiny dictionary, and with the real one where it is."""

from helpers import tree_material, wordnet_files
from helpers.command_line import as_json, invoke
from helpers.tree_material import described, groups_of

from hlnet.tree.construct.levels import cut_to_levels
from hlnet.tree.construct.wordnet import wordnet_hierarchy
from hlnet.tree.dictionary import WordNet
from hlnet.tree.io import read_tree

at, build = tree_material.at, tree_material.build
real = wordnet_files.real


def test_wordnet_in_a_folder(build, at, tmp_path):
    (tmp_path / "names.txt").write_text("beagle\nheron\nsome blob\nlorry\n")
    tree, notes = build(f"{tmp_path}/names.txt --method wordnet --wordnet {{tiny}} --nodes 2")
    assert tree.counts == (2, 4) and described(tree).keys() == {"beagle", "heron", "some blob", "lorry"}
    assert tree.indices == (0, 1, 2, 3) and {"beagle", "heron"} in groups_of(tree, 0)
    assert "'some blob': not found; put into the group 'other'" in notes
    ids = WordNet(at["tiny"])
    assert {leaf.name: leaf.id for leaf in tree.leaves if leaf.id} == {
        name: ids.senses(name)[0] for name in ("beagle", "heron", "lorry")
    }


def test_folders_named_by_ids_get_names_and_keep_the_ids(build, at, tmp_path):
    wordnet = WordNet(at["tiny"])
    ids = [wordnet.senses(name)[0] for name in ("lorry", "beagle", "heron")]
    for id in ids:
        (tmp_path / "photos" / id).mkdir(parents=True)
    tree, _ = build(f"{tmp_path}/photos --method wordnet --wordnet {{tiny}} --nodes 2")
    by_id = sorted(zip(ids, ("lorry", "beagle", "heron"), strict=True))
    assert described(tree) == {name: (i, id) for i, (id, name) in enumerate(by_id)}


def test_wordnet_of_imagenet100(build, real):
    tree, _ = build("preset:imagenet100 --method wordnet --nodes 5,20")
    preset = read_tree("preset:imagenet100")
    assert tree.counts == (5, 20, 100) and described(tree) == described(preset)
    hierarchy, _ = wordnet_hierarchy([leaf.id for leaf in preset.leaves], real)
    hierarchy.rename_classes(preset)
    assert tree == cut_to_levels(hierarchy, [5, 20]).to_tree(3)
    ids = [(tree.ids.get("/".join(leaf.path.split("/")[:end])), leaf.id) for leaf in tree.leaves for end in (1, 2)]
    hypernyms = [group in real.chain(leaf) for group, leaf in ids if group]
    assert all(hypernyms) and len(hypernyms) > 50


def test_notes_of_wordnet_are_for_people(at, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"blob {i}x" for i in range(20)) + "\ndog\nlorry\n")
    line = f"build-tree {tmp_path}/names.txt --method wordnet --wordnet {{tiny}} --out {tmp_path}/x.json"
    notes = as_json(line, **at)["notes"]
    assert len(notes) > 20
    assert invoke(line, **at)[1].splitlines()[1:] == [
        *notes[:12],
        f"… and {len(notes) - 12} more notes: --json lists all",
    ]
