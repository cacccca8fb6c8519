"""What a user may get wrong about the planner: one line each."""

from helpers.misuse import refusal, table
from helpers.steps import here

PLANNER = "esm2_hyperpod/planner/__main__.py"

ROWS = [
    ("no machine", "--model_size 8M", "needed: --instance"),
    ("a size that is none", "--model_size 7B --instance g5.xlarge", "--model_size 7B: not one of tiny, 8M"),
    ("a machine that is none", "--model_size 8M --instance g7.huge",
     "--instance g7.huge: not known; the nearest"),
    ("a misspelt machine", "--model_size 8M --instance ml.g5.24xlrge", "the nearest are ml.g5.24xlarge"),
    ("too large", "--model_size 15B --instance g5.xlarge", "15B does not fit on 1 x ml.g5.xlarge"),
    ("a word for tokens", "--model_size 8M --instance g5.xlarge --tokens many", "many: not a number such as"),
    ("no nodes", "--model_size 8M --instance g5.xlarge --nodes 0", "--nodes 0: must be 1 or more"),
    ("a shortened flag", "--model 8M --instance g5.xlarge", "unknown: --model 8M (did you mean"),
    ("misspelt flag", "--model_size 8M --instance g5.xlarge --node 2", "did you mean --nodes?"),
]  # fmt: skip


@table(ROWS)
def test_misuse(words, message, tmp_path):
    assert message in refusal(PLANNER, words, tmp_path)


def test_without_arguments_it_says_what_it_is_for():
    result = here(PLANNER, check=False)
    assert result.returncode == 1 and "python -m esm2_hyperpod.planner --model_size 650M" in result.stderr


def test_names_that_people_know():
    words = "--instance", "G5.24xlarge", "--nodes", 2, "--model_size"
    plain = here(PLANNER, *words, "650M").stdout
    for name in ("650m", "esm2_t33_650M_UR50D", "facebook/esm2_t33_650M_UR50D"):
        assert here(PLANNER, *words, name).stdout == plain
