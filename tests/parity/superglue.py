"""A few documents of every SuperGLUE task in the official files' format."""

import json

PASSAGE = "Ann Lee, a nurse, lives in Rome. She met Bob Hill there in 1990.\n@highlight\nAnn met Bob"


def span(text):
    start = PASSAGE.index(text)
    return {"start": start, "end": start + len(text) - 1, "text": text}


QUERY = {"query": "@placeholder is a nurse", "answers": [span("Ann Lee")], "idx": 0}
ANSWERS = [{"text": "In Rome", "idx": 0, "label": 1}, {"text": "In Paris", "idx": 1, "label": 0}]
QUESTION = {"question": "Where does she live?", "answers": ANSWERS, "idx": 0}
TWO = "Bob Hill"
DOCUMENTS = {
    "BoolQ": [
        {"question": "is rome a town", "passage": "Rome -- Rome is a town.", "label": True},
        {"question": "is ann a town", "passage": "Ann is a nurse.", "label": False},
    ],
    "CB": [
        {"premise": f"Ann says {k}.", "hypothesis": f"it is {k}", "label": label}
        for k, label in enumerate(("entailment", "contradiction", "neutral"))
    ],
    "COPA": [
        {"premise": "It rained.", "choice1": "It was wet.", "choice2": "I slept.", "question": "effect", "label": 0},
        {"premise": "I fell. ", "choice1": "I ate.", "choice2": "It was wet.", "question": "cause", "label": 1},
    ],
    "MultiRC": [{"passage": {"text": "Ann lives in Rome.", "questions": [QUESTION]}}],
    "ReCoRD": [{"passage": {"text": PASSAGE, "entities": [span("Rome"), span("Ann Lee"), span(TWO)]}, "qas": [QUERY]}],
    "RTE": [
        {"premise": "Ann is in Rome.", "hypothesis": "Ann is in Italy.", "label": "entailment"},
        {"premise": "Ann is in Rome.", "hypothesis": "Ann is ill.", "label": "not_entailment"},
    ],
    "WiC": [
        {"sentence1": "A bank of snow.", "sentence2": "A bank loan.", "start1": 2, "end1": 6, "label": False},
        {"sentence1": "They run fast.", "sentence2": "I run.", "start1": 5, "end1": 8, "label": True},
    ],
    "WSC": [
        {
            "text": "Ann told Sue that she , a nurse , didn't know .",
            "target": {"span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 4},
            "label": True,
        },
        {
            "text": "The dog saw a cat , and it ran .",
            "target": {"span1_text": "the dog", "span1_index": 0, "span2_text": "it.", "span2_index": 7},
            "label": False,
        },
    ],
}


NAMES = ("Eve", "Amy", "Zoe", "Ida")  # as long as Ann, whose places spans give


def write(directory):
    """The files of all tasks; those for prompts have their documents four times, each with a name of its own."""
    for task, documents in DOCUMENTS.items():
        (directory / "superglue" / task).mkdir(parents=True)
        lines = [json.dumps(document) for document in documents]
        train = [line.replace("Ann", name) for name in NAMES for line in lines]
        for file, content in (("val.jsonl", lines * 2), ("train.jsonl", train)):
            (directory / "superglue" / task / file).write_text("\n".join(content) + "\n")
