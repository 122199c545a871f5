"""The paper's tables, true sentences, and who gets which instruction."""

import random
from collections import Counter

import instructions
from reid.records import Record


def test_three_times_twenty_sentences():
    assert {task: len(set(said)) for task, said in instructions.SENTENCES.items()} == {"trad": 20, "cc": 20, "vi": 20}
    assert instructions.SENTENCES["trad"][0] == "do not change clothes" and instructions.SENTENCES["cc"][-1] == "ignore clothes"


def test_twenty_attributes_and_92_phrases():
    assert len(instructions.ATTRIBUTES) == 20
    assert sum(map(len, instructions.ATTRIBUTES.values())) == 92
    assert Counter(map(len, instructions.ATTRIBUTES.values())) == {8: 4, 7: 2, 5: 1, 4: 4, 3: 7, 2: 2}


def test_a_description_says_what_is_there_and_nothing_else():
    rng = random.Random(0)
    for _ in range(200):
        attributes = {key: rng.choice(phrases) for key, phrases in instructions.ATTRIBUTES.items()}
        said = instructions.describe(attributes, rng)
        assert attributes["coat color"].split()[0] in said and attributes["trousers color"].split()[0] in said
        assert "agnostic" not in said and "without" not in said and "  " not in said
        assert ("skirt" in said) == (attributes["trousers length"] == "skirt")
        assert (" hat" in said) == (attributes["cap style"] == "with hat")
        assert ("umbrella" in said) == (attributes["umbrella"] == "with umbrella")


def test_descriptions_vary():
    attributes = {key: phrases[0] for key, phrases in instructions.ATTRIBUTES.items()}
    assert len({instructions.describe(attributes, random.Random(seed)) for seed in range(30)}) > 10


def person(pid, outfit):
    return Record("cocas", "train", f"{pid}_{outfit}.jpg", pid, clothes=f"{pid}:{outfit}", captions=(f"words {pid}:{outfit}",),
                  template_path=f"template {pid}:{outfit}", crop_path=f"crop {pid}:{outfit}")


def test_one_sentence_serves_a_mini_batch_and_all_are_drawn():
    records = [person(pid, 0) for pid in range(4)]
    drawn = set()
    for seed in range(300):
        said = instructions.training_instructions("cc", records, {}, random.Random(seed))
        assert len(said) == 4 and len(set(said)) == 1
        drawn.add(said[0])
    assert drawn == set(instructions.SENTENCES["cc"])


def test_half_of_a_batch_asks_for_other_clothes():
    pool = {pid: [person(pid, outfit) for outfit in range(3)] for pid in range(4)}
    records = [r for group in pool.values() for r in group]
    for task, own in (("ctcc", lambda r: r.crop_path), ("li", lambda r: r.captions[0])):
        said = instructions.training_instructions(task, records, pool, random.Random(0))
        assert all(words.split()[1].split(":")[0] == str(r.pid) for words, r in zip(said, records))  # never another person's
        assert len(records) / 2 <= sum(words == own(r) for words, r in zip(said, records)) < len(records)
    assert sum(words.startswith("template") for words in
               instructions.training_instructions("ctcc", records, pool, random.Random(0))) == len(records) / 2


def test_another_image_is_never_the_image_itself():
    pool = {1: [person(1, outfit) for outfit in range(3)], 2: [person(2, 0)]}
    records = pool[1] + pool[2]
    for seed in range(100):
        said = instructions.training_instructions("ctcc", records, pool, random.Random(seed))
        asks = [(words, r) for words, r in zip(said, records) if words.startswith("template")]
        assert len(asks) == 2
        for words, r in asks:
            alone = r.pid == 2  # there is no other image of that person
            assert (words == r.template_path) == alone


def test_query_and_gallery_sides():
    record = person(1, 2)
    assert instructions.query_instruction("ctcc", record) == "template 1:2"
    assert instructions.gallery_instruction("ctcc", record) == "crop 1:2"
    assert instructions.query_instruction("li", record) == instructions.gallery_instruction("li", record) == "words 1:2"
    assert instructions.query_instruction("t2i", record) == "words 1:2"
    assert instructions.gallery_instruction("t2i", record) is None
    for task in ("trad", "cc", "vi"):
        assert instructions.query_instruction(task, record, 3) == instructions.gallery_instruction(task, record, 3)
