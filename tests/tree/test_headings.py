"""Columns by their headings: ranks in order, whatever order and language they come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlnet.errors import TreeError
from hlnet.tree.headings import is_header, name_columns, normal_heading
from hlnet.tree.tables import read_table

#: Headings of ranks, coarse to fine; the rest of each list may be shuffled.
LADDERS = [
    ["Kingdom", "Phylum", "Class", "Order", "Family", "Genus", "Species"],
    ["Reich", "Stamm", "Klasse", "Ordnung", "Familie", "Gattung", "Art"],
    ["règne", "embranchement", "classe", "ordre", "famille", "genre", "espèce"],
    ["reino", "filo", "clase", "orden", "familia", "género", "especie"],
    ["界", "门", "纲", "目", "科", "属", "种"],
    ["царство", "тип", "класс", "отряд", "семейство", "род", "вид"],
    ["coarse_label", "fine_label"],
    ["superclass", "class"],
    ["super-category", "category", "sub category", "sub_sub_category"],
    ["group", "class"],
    ["manufacturer", "family", "variant"],
    ["Make", "Model", "Year"],
    ["continent", "country", "region", "city"],
    ["L1", "L2", "L3"],
    ["Category 1", "Category 2", "Category 10"],
    ["dwc:family", "dwc:genus", "dwc:scientificName"],
    ["kingdom", "family", "genus", "species (author, year)"],
    ["superfamily", "family", "subfamily", "tribe", "genus", "subspecies"],
]


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda ladder: ladder[0])
@given(data=st.data())
def test_ranks_stand_in_order_whatever_the_columns_order(ladder, data):
    order = data.draw(st.permutations(range(len(ladder))))
    rows = [[f"{depth}{'ab'[row] if depth else ''}" for depth in order] for row in range(2)]
    text = "\n".join(";".join(cells) for cells in [[ladder[i] for i in order], *rows])
    tree = read_table(text).to_tree()
    assert [node.path for node in tree.leaves] == [
        "/".join(["0", *(f"{depth}{letter}" for depth in range(1, len(ladder)))]) for letter in "ab"
    ]


@pytest.mark.parametrize(
    "header, cells, path",
    [
        ("name,Kingdom,Class", "dog,Animalia,Mammalia", "Animalia/Mammalia/dog"),
        ("common_name,family,scientificName", "Cat,Felidae,Felis catus", "Felidae/Felis catus"),
        ("genus,specific_epithet,family", "Felis,catus,Felidae", "Felidae/Felis/catus"),
        ("supercategory,kingdom,species", "Birds,Animalia,Tyto alba", "Birds/Animalia/Tyto alba"),
        ("species,count,family,url", "Felis catus,12,Felidae,x", "Felidae/Felis catus"),
    ],
)
def test_which_column_is_the_class(header, cells, path):
    assert [leaf.path for leaf in read_table(f"{header}\n{cells}\n").to_tree().leaves] == [path]


def test_ids_that_are_numbers_number_the_classes():
    tree = read_table("id,name,class\n7,dog,Mammalia\n3,owl,Aves\n").to_tree()
    assert {leaf.name: (leaf.index, leaf.id) for leaf in tree.leaves} == {"dog": (7, None), "owl": (3, None)}


def test_fine_before_coarse_beside_an_unknown_rank_is_refused():
    with pytest.raises(TreeError, match="'species' is finer than 'family', and the rank of 'habitat' is not known"):
        read_table("species,family,habitat\na,b,c\nd,b,c\n")


def test_an_upside_down_table_of_unknown_ranks_is_told():
    with pytest.raises(TreeError, match="seem to run from fine to coarse"):
        read_table("x,y\ntabby,cat\nmanx,cat\nboxer,dog\n", header=True)


@pytest.mark.parametrize("first, rows, header", [
    (["cat", "tabby"], [["cat", "siamese"]], False),
    (["a", "b"], [["x", "1"], ["y", "2"]], True),
    (["id", "parent", "taxon"], [["1", "", "x"]], True),
    (["L1", "L1"], [["a", "b"]], False),
    (["2021", "2022"], [["1", "2"], ["3", "4"]], False),
])  # fmt: skip
def test_header_or_class(first, rows, header):
    assert is_header(first, rows) is header


def test_normal_headings_of_accents_and_marks():
    assert normal_heading("  Género_ ") == "genero" and normal_heading("col:parentID") == "parentid"


def test_a_column_without_cells_is_not_used():
    found = name_columns(["family", "order", "species"], [["a", "", "b"]])
    assert found.levels == [0, 2] and found.unused == [1]
