"""The paper's six tasks and one more, one row each, and their instructions (Sec. 4.1, Supp. 4-5).

    task   query instruction                  gallery instruction      hit
    trad   one of 20 "do not change clothes"  the same sentence        same person
    cc     one of 20 "ignore clothes"         the same sentence        same person, any clothes
    ctcc   picture of the wanted clothes      crop of its own clothes  same person wearing them
    vi     one of 20 "cross-modality"         the same sentence        same person, other modality
    t2i    the caption, without an image      none                     same person
    li     description of the wanted clothes  its own description      same person wearing them
    both   description and picture of them    its own of both          same person wearing them

No other file mentions a task by name: a new task is a row of TASKS.
"""

from typing import NamedTuple

# The paper does not say how ctcc and li are trained. Here half of a batch has its own instruction,
# like gallery images, and half has that of another image of the person, like queries.
OTHERS_SHARE = 0.5

# Supp. Tab. 4, word for word.
SENTENCES = {
    "trad": (
        "do not change clothes", "maintain consistent clothes", "keep original clothes",
        "preserve current clothes", "retain existing clothes", "wear the same clothes",
        "stick with your clothes", "don't alter your clothes", "no changes to clothes",
        "unchanged outfit", "clothes remain constant", "no clothing adjustments",
        "steady clothing choice", "clothing remains unchanged", "consistent clothing selection",
        "retain your clothing style", "clothing choice remains", "don't swap clothes",
        "maintain clothing selection", "clothes stay the same",
    ),
    "cc": (
        "change your clothes", "swap outfits", "switch attire", "get into a different outfit",
        "try on something new", "put on fresh clothing", "dress in alternative attire",
        "alter your outfit", "wear something else", "don a different ensemble",
        "trade your garments", "shift your wardrobe", "exchange your clothing",
        "update your attire", "replace your outfit", "clothe yourself differently",
        "switch your style", "update your look", "put on a new wardrobe", "ignore clothes",
    ),
    "vi": (
        "retrieve cross-modality images", "fetch images across different modalities",
        "collect images from various modalities", "obtain images spanning different modalities",
        "retrieve images from diverse modalities", "gather images across modalities",
        "access images across different modalities", "acquire images spanning various modalities",
        "extract images from different modalities", "retrieve images across multiple modalities",
        "fetch images from distinct modalities", "collect images across various modalities",
        "access images from different modalities", "obtain images from diverse modalities",
        "gather images spanning different modalities", "extract images from various modalities",
        "retrieve images across varied modalities", "obtain images from distinct modalities",
        "access images across multiple modalities", "collect images spanning diverse modalities",
    ),
}

PERSON_SENTENCE = SENTENCES["cc"][0]  # for finding a person in any clothes


# ---- tasks ----

class Ask(NamedTuple):
    """An instruction: a sentence, a picture of clothes, or both. Without instruction: None."""

    words: str | None = None
    picture: str | None = None  # a path below the data set's root


class Task(NamedTuple):
    """Everything that differs between tasks."""

    sentences: tuple[str, ...] = ()  # queries and gallery images get the same one of these
    described: bool = False  # an Ask has words: a caption of the record
    pictures: bool = False  # an Ask has a picture of clothes
    text_only: bool = False  # a query is a text without an image
    opposite: str | None = None  # a task whose sentence is wrong here, for the instruction matrix
    targets: tuple[str, ...] = ()  # rows of the instruction matrix: names in protocols.TARGETS
    data_of: str | None = None  # a task whose data sets and protocols this one uses too
    tag: str = ""  # the task's name in the list files of the released code
    share: int = 1  # steps in a round of the preset toy; 0: trained only if named

    @property
    def parts(self):
        """The subset of model.PARTS that the task trains."""
        words = ("words",) if self.sentences or self.described else ()
        pictures = ("pictures",) if self.pictures else ()
        instructed = ("text queries",) if self.text_only else ("editing", "fused")
        return words + pictures + instructed


WANTED = ("wanted clothes",)

TASKS = {
    "trad": Task(SENTENCES["trad"], opposite="cc", tag="sc", share=4),
    "cc": Task(
        SENTENCES["cc"],
        opposite="trad",
        targets=("other clothes", "same clothes"),
        tag="cc",
        share=12,
    ),
    "ctcc": Task(pictures=True, targets=WANTED, tag="ctcc", share=3),
    "vi": Task(SENTENCES["vi"], opposite="trad", tag="cross", share=4),
    "t2i": Task(described=True, text_only=True, tag="t2i", share=4),
    "li": Task(described=True, targets=WANTED, tag="attr", share=5),
    "both": Task(described=True, pictures=True, targets=WANTED, share=0),
}


def asked_tasks(name):
    """{task: its row} for a value of --task: "all" means every task with a share."""
    if name != "all":
        return {name: TASKS[name]}
    return {task: row for task, row in TASKS.items() if row.share}


# ---- who gets which instruction ----

def query_instruction(task, record, sentence=0):
    """The Ask of a query. sentence: the index of the task's sentence, if it has sentences."""
    row = TASKS[task]
    if row.sentences:
        return Ask(row.sentences[sentence])
    words = record.captions[0] if row.described else None
    picture = record.template_path or record.crop_path if row.pictures else None
    return Ask(words, picture)


def gallery_instruction(task, record, sentence=0):
    """The Ask of a gallery image: its own description or picture; None if it has none, as in t2i.

    For a query, whose last caption is its own description if there is one, this is what it wears.
    """
    row = TASKS[task]
    if row.sentences:
        return Ask(row.sentences[sentence])
    if row.text_only:
        return None
    words = record.captions[-1] if row.described and record.captions else None
    picture = record.crop_path or record.template_path if row.pictures else None
    return Ask(words, picture) if words or picture else None


def training_instructions(task, records, images_of, rng):
    """An Ask for each Record of a training batch.

    images_of(pid): that person's training Records, called only when needed; rng: random.Random.
    """
    row = TASKS[task]
    if row.sentences:  # "we randomly choose one ... when training each mini-batch" (Supp. 5.1)
        return [Ask(rng.choice(row.sentences))] * len(records)
    if row.text_only:
        return [Ask(rng.choice(record.captions)) for record in records]

    asks = [gallery_instruction(task, record) for record in records]
    count = int(len(records) * OTHERS_SHARE)
    for i in sorted(rng.sample(range(len(records)), count)):
        other = another_image(records[i], images_of(records[i].pid), rng)
        asks[i] = query_instruction(task, other)
    return asks


def another_image(record, images, rng):
    """One of the person's other images; the record itself if there is none."""
    others = [image for image in images if image.path != record.path]
    return rng.choice(others or [record])


# ---- descriptions ----

# Supp. Tab. 3, word for word: 20 attributes with 92 phrases.
ATTRIBUTES = {
    "coat color": (
        "black coat", "blue coat", "gray coat", "green coat", "purple coat", "red coat",
        "white coat", "yellow coat",
    ),
    "trousers color": (
        "black trousers", "blue trousers", "gray trousers", "green trousers", "purple trousers",
        "red trousers", "white trousers", "yellow trousers",
    ),
    "coat length": (
        "agnostic length coat", "long sleeve coat", "short sleeve coat", "bareback coat",
    ),
    "trousers length": ("shorts trousers", "skirt", "trousers"),
    "gender code": ("female", "agnostic gender", "male"),
    "glass style": ("without glasses", "with glasses", "with sunglasses"),
    "hair color": ("black hair", "agnostic color hair", "white hair", "yellow hair"),
    "hair style": ("bald hair", "agnostic style hair", "long hair", "short hair"),
    "bag style": (
        "backpack", "hand bag", "shoulder bag", "waist pack", "trolley", "agnostic style bag",
        "without bag",
    ),
    "cap style": ("with hat", "without hat"),
    "shoes color": (
        "black shoes", "blue shoes", "gray shoes", "green shoes", "purple shoes", "red shoes",
        "white shoes", "yellow shoes",
    ),
    "shoes style": ("boots", "leather shoes", "sandal", "walking shoes"),
    "age": ("adult", "child", "old"),
    "person angle": ("back", "front", "side"),
    "pose": ("lie", "pose agnostic", "sit", "stand", "stoop"),
    "coat style": (
        "business suit", "agnostic style coat", "dress", "jacket", "long coat", "shirt", "sweater",
        "t-shirt",
    ),
    "glove": ("with glove", "agnostic glove", "without glove"),
    "smoking": ("smoking", "agnostic smoking", "without smoking"),
    "umbrella": ("with umbrella", "without umbrella"),
    "uniform": (
        "chef uniform", "common clothing", "firefighter uniform", "medical uniform",
        "office uniform", "agnostic uniform", "worker uniform",
    ),
}

# Phrases that are left out of a description, as nobody mentions such things.
UNSAID = {
    "without glasses", "without bag", "without hat", "without glove", "without smoking",
    "without umbrella", "common clothing", "stand",
}

NOUNS = {"male": ("man", "boy"), "female": ("woman", "girl")}  # gender -> adult, child

ACCESSORIES = {
    "with hat": "a hat",
    "with glasses": "glasses",
    "with sunglasses": "sunglasses",
    "with glove": "gloves",
    "with umbrella": "an umbrella",
}


def describe(attributes, rng):
    """A description from attributes, by templates (by Alpaca-LoRA in the paper, Supp. Sec. 4.2).

    attributes: {attribute: one of its phrases}; agnostic and unsaid phrases are left out.
    rng: random.Random. Returns one to four lower-case sentences.
    """
    phrases = {key: phrase for key, phrase in attributes.items()
               if "agnostic" not in phrase and phrase not in UNSAID}
    person = _person(phrases, rng)
    sentences = [_wearing(person, phrases, rng)]
    sentences += _details(phrases, rng)
    return " ".join(sentences)


def _person(phrases, rng):
    """`an elderly woman with short black hair`"""
    adult, child = NOUNS.get(phrases.get("gender code"), ("person", "child"))
    noun = child if phrases.get("age") == "child" else adult

    old = rng.choice(("elderly", "old"))
    person = f"an {old} {noun}" if phrases.get("age") == "old" else f"a {noun}"

    hair = [*filter(None, (_adjective(phrases, key) for key in ("hair style", "hair color")))]
    if "bald" in hair:
        return f"{person} with a bald head"
    if hair:
        return f"{person} with {' '.join(hair)} hair"
    return person


def _wearing(person, phrases, rng):
    """`a man wears a red long sleeve jacket and blue trousers.`"""
    adjectives = [_adjective(phrases, key) for key in ("coat color", "coat length")]
    upper = " ".join(filter(None, [*adjectives, phrases.get("coat style", "coat")]))

    trousers = {"shorts trousers": "shorts", "skirt": "a skirt"}
    lower = trousers.get(phrases.get("trousers length"), "trousers")
    colour = _adjective(phrases, "trousers color")
    if colour:
        noun = lower.removeprefix("a ")
        article = lower.removesuffix(noun)
        lower = f"{article}{colour} {noun}"

    return rng.choice((
        f"{person} wears a {upper} and {lower}.",
        f"{person} in a {upper}, with {lower}.",
        f"this is {person}, dressed in a {upper} and {lower}.",
        f"the picture shows {person} who has {lower} and a {upper} on.",
    ))


def _adjective(phrases, key):
    """`red` of the coat color `red coat`; None if it is left out."""
    noun = key.split()[0]
    return phrases[key].removesuffix(f" {noun}") if key in phrases else None


def _details(phrases, rng):
    """At most three sentences: shoes and accessories, the person angle, the pose."""
    sentences = []
    things = _things(phrases)
    rng.shuffle(things)
    if things:
        *others, last = things
        listed = f"{', '.join(others)} and {last}" if others else last
        template = rng.choice(("the outfit goes with {}.", "also visible: {}.", "one can see {}."))
        sentences.append(template.format(listed))

    if "person angle" in phrases:
        template = rng.choice(("seen from the {}.", "the {} is towards the camera."))
        sentences.append(template.format(phrases["person angle"]))

    doing = [phrases[key] for key in ("pose", "smoking") if key in phrases]
    if doing:
        sentences.append(f"pose: {' and '.join(doing)}.")
    return sentences


def _things(phrases):
    things = []
    if "shoes color" in phrases:
        style = phrases.get("shoes style", "shoes")
        shoes = "sandals" if style == "sandal" else style
        things.append(f"{_adjective(phrases, 'shoes color')} {shoes}")

    if "bag style" in phrases:
        things.append(f"a {phrases['bag style']}")

    for key in ("cap style", "glass style", "glove", "umbrella"):
        if key in phrases:
            things.append(ACCESSORIES[phrases[key]])

    if "uniform" in phrases:
        things.append(f"a {phrases['uniform']}")
    return things
