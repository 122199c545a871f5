"""Instructions (Sec. 4.1, Supp. Sec. 4-5): the sentences, the attributes, and which instruction a picture gets in each task.

    task   query instruction                        gallery instruction          a hit
    trad   one of 20 "do not change clothes"        the same sentence            same person
    cc     one of 20 "ignore clothes"               the same sentence            same person, whatever the clothes
    ctcc   picture of the wanted clothes            crop of its own clothes      same person wearing the wanted clothes
    vi     one of 20 "cross-modality"               the same sentence            same person, other modality
    t2i    the caption (there is no query image)    none                         same person
    li     description of another image of them     its own description          same person so described
"""

TASKS = ("trad", "cc", "ctcc", "vi", "t2i", "li")

# The paper is silent on the training mix of ctcc and li. Here half of a batch carries its own instruction, as gallery
# images do, and half that of another image of the same person, as queries do.
OTHERS_SHARE = 0.5

SENTENCES = {  # Supp. Tab. 4, word for word
    "trad": (
        "do not change clothes", "maintain consistent clothes", "keep original clothes", "preserve current clothes",
        "retain existing clothes", "wear the same clothes", "stick with your clothes", "don't alter your clothes",
        "no changes to clothes", "unchanged outfit", "clothes remain constant", "no clothing adjustments",
        "steady clothing choice", "clothing remains unchanged", "consistent clothing selection",
        "retain your clothing style", "clothing choice remains", "don't swap clothes", "maintain clothing selection",
        "clothes stay the same",
    ),
    "cc": (
        "change your clothes", "swap outfits", "switch attire", "get into a different outfit", "try on something new",
        "put on fresh clothing", "dress in alternative attire", "alter your outfit", "wear something else",
        "don a different ensemble", "trade your garments", "shift your wardrobe", "exchange your clothing",
        "update your attire", "replace your outfit", "clothe yourself differently", "switch your style",
        "update your look", "put on a new wardrobe", "ignore clothes",
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

ATTRIBUTES = {  # Supp. Tab. 3, word for word: 20 attributes, and the printed table does hold the 92 phrases it announces
    "coat color": ("black coat", "blue coat", "gray coat", "green coat", "purple coat", "red coat", "white coat",
                   "yellow coat"),
    "trousers color": ("black trousers", "blue trousers", "gray trousers", "green trousers", "purple trousers",
                       "red trousers", "white trousers", "yellow trousers"),
    "coat length": ("agnostic length coat", "long sleeve coat", "short sleeve coat", "bareback coat"),
    "trousers length": ("shorts trousers", "skirt", "trousers"),
    "gender code": ("female", "agnostic gender", "male"),
    "glass style": ("without glasses", "with glasses", "with sunglasses"),
    "hair color": ("black hair", "agnostic color hair", "white hair", "yellow hair"),
    "hair style": ("bald hair", "agnostic style hair", "long hair", "short hair"),
    "bag style": ("backpack", "hand bag", "shoulder bag", "waist pack", "trolley", "agnostic style bag", "without bag"),
    "cap style": ("with hat", "without hat"),
    "shoes color": ("black shoes", "blue shoes", "gray shoes", "green shoes", "purple shoes", "red shoes", "white shoes",
                    "yellow shoes"),
    "shoes style": ("boots", "leather shoes", "sandal", "walking shoes"),
    "age": ("adult", "child", "old"),
    "person angle": ("back", "front", "side"),
    "pose": ("lie", "pose agnostic", "sit", "stand", "stoop"),
    "coat style": ("business suit", "agnostic style coat", "dress", "jacket", "long coat", "shirt", "sweater", "t-shirt"),
    "glove": ("with glove", "agnostic glove", "without glove"),
    "smoking": ("smoking", "agnostic smoking", "without smoking"),
    "umbrella": ("with umbrella", "without umbrella"),
    "uniform": ("chef uniform", "common clothing", "firefighter uniform", "medical uniform", "office uniform",
                "agnostic uniform", "worker uniform"),
}

# What an English speaker leaves unsaid when describing somebody.
UNSAID = {"without glasses", "without bag", "without hat", "without glove", "without smoking", "without umbrella",
          "common clothing", "stand"}


def describe(attributes, rng):
    """Attributes in words, the role of the paper's Alpaca-LoRA (Supp. Sec. 4.2), in varied templates.

    attributes: {attribute: one of its phrases}; agnostic and unsaid phrases are left out. rng: random.Random.
    Returns two or three lower-case sentences.
    """
    said = {key: phrase for key, phrase in attributes.items() if "agnostic" not in phrase and phrase not in UNSAID}
    words = {key: phrase.removesuffix(" " + key.split()[0]) for key, phrase in said.items()}  # "red coat" -> "red"
    person = _person(said, rng)
    return " ".join([_wearing(person, said, words, rng)] + _details(said, words, rng))


def _person(said, rng):
    adult, child = {"male": ("man", "boy"), "female": ("woman", "girl")}.get(said.get("gender code"), ("person", "child"))
    noun = child if said.get("age") == "child" else adult
    age = {"old": rng.choice(("elderly ", "old "))}.get(said.get("age"), "")
    hair = [said[key].removesuffix(" hair") for key in ("hair style", "hair color") if key in said]
    if "bald" in hair:
        look = " with a bald head"
    else:
        look = f" with {' '.join(hair)} hair" if hair else ""
    return f"{'an' if age else 'a'} {age}{noun}{look}"


def _wearing(person, said, words, rng):
    coat = " ".join(filter(None, (words.get("coat color"), words.get("coat length"), said.get("coat style", "coat"))))
    legs = {"shorts trousers": "shorts", "skirt": "skirt"}.get(said.get("trousers length"), "trousers")
    lower = f"{'a ' if legs == 'skirt' else ''}{words.get('trousers color', '')} {legs}".replace("  ", " ").strip()
    return rng.choice((
        f"{person} wears a {coat} and {lower}.",
        f"{person} in a {coat}, with {lower}.",
        f"this is {person}, dressed in a {coat} and {lower}.",
        f"the picture shows {person} who has {lower} and a {coat} on.",
    ))


def _details(said, words, rng):
    things = []
    if "shoes color" in said:
        style = said.get("shoes style", "shoes")
        things.append(f"{words['shoes color']} {'sandals' if style == 'sandal' else style}")
    if "bag style" in said:
        things.append(f"a {said['bag style']}")
    things += [{"with hat": "a hat", "with glasses": "glasses", "with sunglasses": "sunglasses", "with glove": "gloves",
                "with umbrella": "an umbrella"}[said[key]]
               for key in ("cap style", "glass style", "glove", "umbrella") if key in said]
    things += [f"a {said['uniform']}"] if "uniform" in said else []
    rng.shuffle(things)
    sentences = []
    if things:
        listed = things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]
        sentences.append(rng.choice(("the outfit goes with {}.", "also visible: {}.", "one can see {}.")).format(listed))
    if "person angle" in said:
        sentences.append(rng.choice(("seen from the {}.", "the {} is towards the camera.")).format(said["person angle"]))
    doing = [said[key] for key in ("pose", "smoking") if key in said]
    return sentences + [f"pose: {' and '.join(doing)}." for _ in doing[:1]]


def training_instructions(task, records, pool, rng):
    """The instruction of each image of a training batch.

    records: the b Records of the batch; pool: {pid: that person's training Records}; rng: random.Random.
    Returns b sentences or, for ctcc, b picture paths relative to the data set's root.
    """
    if task in SENTENCES:  # "we randomly choose one from these instructions when training each mini-batch" (Supp. 5.1)
        return [rng.choice(SENTENCES[task])] * len(records)
    if task == "t2i":
        return [rng.choice(record.captions) for record in records]
    asking = set(rng.sample(range(len(records)), int(len(records) * OTHERS_SHARE)))
    chosen = []
    for i, record in enumerate(records):
        if i in asking:
            others = [other for other in pool[record.pid] if other != record] or [record]
            chosen.append(query_instruction(task, rng.choice(others)))
        else:
            chosen.append(gallery_instruction(task, record))
    return chosen


def query_instruction(task, record, sentence=0):
    """What a query asks for: a sentence, or for ctcc the path of the picture of the wanted clothes."""
    if task in SENTENCES:
        return SENTENCES[task][sentence]
    return (record.template_path or record.crop_path) if task == "ctcc" else record.captions[0]


def gallery_instruction(task, record, sentence=0):
    """What an image is encoded with to be found: the task's sentence, the crop or description of its own clothes, None (t2i)."""
    if task in SENTENCES:
        return SENTENCES[task][sentence]
    # a query's captions are what it asks for and, where the data tells, its own description
    own = {"t2i": None, "ctcc": record.crop_path or record.template_path, "li": (record.captions or (None,))[-1]}
    return own[task]
