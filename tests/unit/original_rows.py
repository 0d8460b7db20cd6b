"""Hand-written rows in the schemas of the eight data sets on the hub."""

CHOICES = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
# One row of each schema, with the answer and a part of the instruction that it must become.
ORIGINALS = {
    "boolq": (
        {"question": "is it blue", "passage": "It is red.", "answer": False},
        "false",
        "question: is it blue?\n\nAnswer format",
    ),
    "hellaswag": (
        {
            "activity_label": "Tennis",
            "ctx": "A man [step] runs. he",
            "endings": ["a", "b", "c", "d"],
            "label": "2",
        },
        "ending3",
        "sentence: Tennis: A man [step] runs. he\n\nEnding1: a Ending2: b Ending3: c Ending4: d\n\n",
    ),
    "winogrande": (
        {"sentence": "_ left.", "option1": "Ann", "option2": "Bo", "answer": "2"},
        "option2",
        "sentence: _ left.\n\nOption1: Ann Option2: Bo Answer format",
    ),
    "piqa": (
        {"goal": "Cut it", "sol1": "knife", "sol2": "spoon", "label": 0},
        "solution1",
        "question: Cut it\n\nSolution1: knife\n\nSolution2: spoon\n\n",
    ),
    "social_i_qa": (
        {
            "context": "Al fell.",
            "question": "Why?",
            "answerA": "a",
            "answerB": "b",
            "answerC": "c",
            "label": "3",
        },
        "answer3",
        "question: Al fell. Why?\n\nAnswer1: a Answer2: b Answer3: c\n\nAnswer format: "
        "answer1/answer2/answer3",
    ),
    "arc-easy": (
        {"id": "7", "question": "Why?", "choices": CHOICES, "answerKey": "D"},
        "answer4",
        "question: Why?\n\nAnswer1: a Answer2: b Answer3: c Answer4: d\n\n",
    ),
    "arc-challenge": (
        {
            "question": "Why?",
            "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        "answer2",
        "question: Why?\n\nAnswer1: x Answer2: y Answer3: z\n\n",
    ),
    "openbookqa": (
        {"question_stem": "Cows eat", "choices": CHOICES, "answerKey": "A"},
        "answer1",
        "question: Cows eat\n\nAnswer1: a Answer2: b Answer3: c Answer4: d\n\n",
    ),
}
