"""Files as people have them: each is read as it is meant, and one line says as what."""

import logging

import pytest

from hlnet.errors import TreeError
from hlnet.tree.io import read_tree

PETS = {"cat": {"manx": 0, "tabby": 1}, "dog": {"boxer": 2}}
#: Name, file, text, the nested tree, and words of the one line that tells it.
CASES = [
    ("fine before coarse", "t.csv", "class,superclass\nmanx,cat\ntabby,cat\nboxer,dog\n", PETS, "superclass > class"),
    ("unknown headings", "t.csv", "Rasse,Tier\nmanx,cat\n", {"Rasse": {"Tier": 0}, "manx": {"cat": 1}},
     "row 1 ('Rasse,Tier') was taken for a class (else header=True, --header)"),
    ("name before ranks", "t.csv", "name,Family,Genus\nmanx,Felidae,Felis\n",
     {"Felidae": {"Felis": {"manx": 0}}}, "Family > Genus > name"),
    ("Excel's first line", "t.csv", "sep=;\ncat;manx\ncat;tabby\ndog;boxer\n", PETS, "semicolons"),
    ("semicolons, comma in the header", "t.csv", "genus;species (author, year)\ncat;manx\ncat;tabby\ndog;boxer\n",
     PETS, "semicolons"),
    ("missing values", "t.csv", "class,subclass\ncat,manx\ncat,tabby\ndog,boxer\nfish,NA\n", {**PETS, "fish": 3}, "NA"),
    ("an empty rank", "t.csv", "class,order,species\na,b,x\na,,y\n", {"a": {"b": {"x": 0}, "y": 1}},
     "rows with empty ranks between: 1 (closed)"),
    ("comment lines", "t.csv", "# pets\ngroup,class\ncat,manx\ncat,tabby\n# more\ndog,boxer\n", PETS, "comment"),
    ("ids with parent ids", "t.csv", "id,name,parent_id\n1,cat,\n2,manx,1\n3,tabby,1\n4,dog,\n5,boxer,4\n", PETS,
     "parents in 'parent_id'"),
    ("Darwin Core", "t.csv",
     "taxonID,parentNameUsageID,scientificName,taxonRank\n9,,cat,genus\n8,9,manx,species\n7,9,tabby,species\n"
     "6,,dog,genus\n5,6,boxer,species\n", PETS, "parents in 'parentNameUsageID'"),
    ("outline", "t.txt", "cat\n  manx\n  tabby\ndog\n  boxer\n", PETS, "indentation"),
    ("numbers before names", "t.txt", "4: manx\n7: boxer\n", {"manx": 4, "boxer": 7}, "original indices"),
    ("ids before names", "t.txt", "n02123045 manx\nn02108089 boxer\n", {"manx": 0, "boxer": 1}, "ids"),
    ("a plain list", "t.txt", "manx\nboxer\n", {"manx": 0, "boxer": 1}, "one class a line"),
    ("Keras", "t.json", '{"1": ["n2", "boxer"], "0": ["n1", "manx"]}', {"manx": 0, "boxer": 1}, "original indices"),
    ("Hugging Face", "t.json", '{"id2label": {"0": "manx", "1": "boxer"}}', {"manx": 0, "boxer": 1}, "classes: 2"),
    ("Ultralytics", "data.yaml", "path: x\ntrain: a\nval: b\nnames:\n  0: manx\n  1: boxer\n", {"manx": 0, "boxer": 1},
     "'names'"),
    ("names alone", "data.yaml", "names: {0: manx, 1: boxer}\n", {"manx": 0, "boxer": 1}, "'names'"),
    ("COCO", "t.json", '{"categories": [{"id": 3, "name": "manx", "supercategory": "cat"}]}',
     {"cat": {"manx": 3}}, "COCO"),
    ("Darwin Core with other ids", "t.csv",
     "id,taxonID,identifier,parentNameUsageID,kingdom,scientificName,taxonRank\n1,9,u,,x,cat,genus\n2,8,u,9,x,manx,species"
     "\n3,7,u,9,x,tabby,species\n4,6,u,,x,dog,genus\n5,5,u,6,x,boxer,species\n", PETS, "not used: 'id', 'identifier'"),
    ("numbered by pandas", "t.csv", ",class,subclass\n0,cat,manx\n1,cat,tabby\n2,dog,boxer\n", PETS,
     "not used: 'column 1'"),
    ("arrows", "t.txt", "cat > manx\ncat > tabby\ndog > boxer\n", PETS, "classes: 3"),
    ("backslashes", "t.txt", "cat\\manx\ncat\\tabby\ndog\\boxer\n", PETS, "classes: 3"),
    ("Darknet", "t.names", "manx\nboxer\n", {"manx": 0, "boxer": 1}, "one class a line"),
    ("objects with parents", "t.json",
     '[{"id": 1, "name": "manx", "parent": 4}, {"id": 2, "name": "tabby", "parent": 4}, {"id": 4, "name": "cat", '
     '"parent": null}, {"id": 5, "name": "dog", "parent": null}, {"id": 3, "name": "boxer", "parent": 5}]', PETS,
     "objects with their parents"),
    ("a mapping to parents", "t.json", '{"manx": "cat", "tabby": "cat", "boxer": "dog"}', PETS,
     "names with their parents"),
    ("links from child to parent", "t.json",
     '{"nodes": [{"id": "cat"}, {"id": "manx"}, {"id": "tabby"}], "links": [{"source": "manx", "target": "cat"}, '
     '{"source": "tabby", "target": "cat"}]}', {"manx": 0, "tabby": 1}, "child to parent"),
]  # fmt: skip


@pytest.mark.parametrize(("_", "name", "text", "nested", "words"), CASES, ids=[case[0] for case in CASES])
def test_read_as_meant_and_told(tmp_path, caplog, _, name, text, nested, words):
    (tmp_path / name).write_text(text)
    with caplog.at_level(logging.INFO, "hlnet"):
        tree = read_tree(tmp_path / name)
    assert tree.to_nested() == nested
    lines = [record.getMessage() for record in caplog.records]
    assert lines and all("\n" not in line for line in lines)
    assert words in " ".join(lines)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_unicode_as_spreadsheets_write_it(tmp_path, encoding):
    (tmp_path / "t.tsv").write_text("ordre\tespèce\ncat\tmanx\ncat\ttabby\ndog\tboxer\n", encoding=encoding)
    assert read_tree(tmp_path / "t.tsv").to_nested() == PETS


def test_other_encodings_are_refused_with_the_mend(tmp_path):
    (tmp_path / "t.csv").write_text("genus,espèce\ncat,manx\n", encoding="latin-1")
    with pytest.raises(TreeError, match=r"no text in UTF-8 \(line 1 has the byte 0xe8\); save it as UTF-8"):
        read_tree(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "species,habitat,family\na,x,f\nb,y,f\n", "finer"),
        ("t.txt", "1 0\n2 0\n3 1\n", "links"),
        ("t.json", '{"type": "FeatureCollection", "features": []}', "GeoJSON"),
        ("t.json", '[{"label": "a", "score": 1}]', "a format that is not known"),
        ("data.yaml", "path: x\ntrain: a\nval: b\nnc: 2\n", "without the 'names'"),
        ("data.yaml", "path: x\ntrain: a\nval: a\n", "without the 'names'"),
    ],
)
def test_what_is_no_tree_is_refused_by_what_it_looks_like(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(TreeError, match=words):
        read_tree(tmp_path / name)
