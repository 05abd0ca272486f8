"""Miniatures of every data set in the table, with the columns and the spelling of answers that the hub has."""

DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def _math(problem, solution):
    return {"problem": problem, "level": "Level 2", "type": "Algebra", "solution": solution}


def _dapo(problem, answer):
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": DAPO_BEFORE + problem + DAPO_AFTER, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a9b6eb4-a1cb-49d1-8c1e-62eaf2f74079"},
    }


def _dapo_processed(problem, answer):
    row = _dapo(problem, answer)
    return {**row, "prompt": problem, "solution": answer, "source_prompt": row["prompt"]}


def _openr1(problem, answer, kind="math-word-problem"):
    return {
        "problem": problem,
        "solution": f"... $\\boxed{{{answer}}}$",
        "answer": answer,
        "problem_type": "Algebra",
        "question_type": kind,
        "source": "olympiads",
        "uuid": "586fd646-76d6-5070-8c81-9993ab9d8559",
        "generations": ["<think>...</think>"],
        "correctness_math_verify": [True],
        "is_reasoning_complete": [True],
    }


def _math500(problem, answer):
    return {
        "problem": problem,
        "solution": f"$\\boxed{{{answer}}}$",
        "answer": answer,
        "subject": "Precalculus",
        "level": 2,
        "unique_id": "test/precalculus/807.json",
    }


def _olympiad(question, answers, several=False, kind="Numerical"):
    return {
        "id": 1606,
        "question": question,
        "solution": ["..."],
        "final_answer": answers,
        "context": None,
        "modality": "Text-only",
        "difficulty": "Competition",
        "is_multiple_answer": several,
        "unit": None,
        "answer_type": kind,
        "error": None,
        "question_type": "Open-ended",
        "subfield": "Combinatorics",
        "subject": "Math",
        "language": "English",
    }


# Name of the set -> split of ours -> rows.
ROWS = {
    "math": {
        "train": [
            _math("What is $\\frac12 + \\frac16$?", "It is $\\frac46 = \\boxed{\\frac{2}{3}}$."),
            _math("Where is $|z| = 0$?", "First $\\boxed{1}$, no: \\[\\boxed{\\left(0, \\frac{\\pi}{2}\\right)}.\\]"),
        ],
        "test": [_math("What is $2^{10}$?", "So $2^{10} = \\boxed{1024}$.")],
    },
    "math-hard": {
        "test": [
            _math("What is $2^{10}$?", "So $2^{10} = \\boxed{1024}$."),
            _math("What is $2^{11}$?", "So $2^{11} = \\boxed{2048}$.") | {"level": "Level 5"},
        ]
    },
    "math12k": {
        "train": [{"problem": "What is $3 + 4$?", "answer": "7"}],
        "test": [{"problem": "Solve $x^2 = 2$ for $x > 0$.", "answer": "\\sqrt{2}"}],
    },
    "gsm8k": {
        "train": [
            {"question": "A house costs $80,000, ...?", "answer": "He gains <<2-1=1>>1.\n#### 70,000"},
            {"question": "How many clips?", "answer": "48/2 = <<48/2=24>>24.\n#### 24"},
        ],
        "test": [{"question": "How many eggs?", "answer": "16 - 3 = <<16-3=13>>13\n#### 13"}],
    },
    "dapo-math-17k": {
        "train": [_dapo_processed("Find $a + b$.", "34"), _dapo_processed("求 $x$ 的值。", "-7")],
    },
    "dapo-math-17k-original": {
        "train": [_dapo("Find $a + b$.", "34"), _dapo("Find $a + b$.", "34"), _dapo("Find $n$.", "5")],
    },
    "openr1-math": {
        "train": [
            _openr1("How fast is the boat?", "v_{R}=4\\mathrm{~}/\\mathrm{}"),
            _openr1("How many points?", "\\frac{5}{2}"),
            _openr1("Prove it.", "proof", kind="proof"),
            _openr1("Which? (A) 1 (B) 2", "B", kind="MCQ"),
        ],
    },
    "math500": {
        "test": [
            _math500("Convert $(0,3)$ to polar form.", "\\left( 3, \\frac{\\pi}{2} \\right)"),
            _math500("Who runs fastest?", "\\text{Evelyn}"),
            _math500("Where is it defined?", "(-\\infty, 2) \\cup (3, \\infty)"),
        ],
    },
    "aime24": {
        "test": [
            {"id": 60, "problem": "How long?", "solution": "...", "answer": "204", "url": "", "year": "2024"},
            {"id": 61, "problem": "How many?", "solution": "...", "answer": "033", "url": "", "year": "2024"},
        ],
    },
    "aime25": {"test": [{"problem": "Sum of bases?", "answer": "70", "id": "0"}]},
    "amc23": {"test": [{"id": 0, "answer": 27.0, "url": "", "question": "How far from $A$?"}]},
    "minerva": {
        "test": [
            {"question": "Diameter in cm?", "answer": "1.6"},
            {"question": "Energy in erg/s?", "answer": "4.5e33"},
            {
                "question": "The function?",
                "answer": "x_{0} \\cos (\\omega t)+$ $\\dot{x}_{0} \\sin (\\omega t) / \\omega",
            },
        ],
    },
    "olympiadbench": {
        "test": [
            _olympiad("How many moves?", ["2"]),
            _olympiad("The chance?", ["$\\frac{1}{2 n+2}$"], kind="Expression"),
            _olympiad("All triples?", ["$(1,8,19), (2,7,13), (4,5,7)$"], several=True, kind="Tuple"),
        ],
    },
}

# Name -> split -> the ground truths that the rows above give.
TRUTHS = {
    "math": {"train": ["\\frac{2}{3}", "\\left(0, \\frac{\\pi}{2}\\right)"], "test": ["1024"]},
    "math-hard": {"test": ["2048"]},
    "math12k": {"train": ["7"], "test": ["\\sqrt{2}"]},
    "gsm8k": {"train": ["70000", "24"], "test": ["13"]},
    "dapo-math-17k": {"train": ["34", "-7"]},
    "dapo-math-17k-original": {"train": ["34", "5"]},
    "openr1-math": {"train": ["v_{R}=4\\mathrm{~}/\\mathrm{}", "\\frac{5}{2}"]},
    "math500": {
        "test": ["\\left( 3, \\frac{\\pi}{2} \\right)", "\\text{Evelyn}", "(-\\infty, 2) \\cup (3, \\infty)"],
    },
    "aime24": {"test": ["204", "033"]},
    "aime25": {"test": ["70"]},
    "amc23": {"test": ["27"]},
    "minerva": {
        "test": ["1.6", "4.5e33", "x_{0} \\cos (\\omega t)+$ $\\dot{x}_{0} \\sin (\\omega t) / \\omega"],
    },
    "olympiadbench": {"test": ["2", "\\frac{1}{2 n+2}"]},
}
