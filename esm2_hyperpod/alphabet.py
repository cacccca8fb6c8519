"""ESM-2's alphabet: 33 tokens, the byte-to-token table, and the tokenizer saved with every model.

Token order: `fair-esm` 2.0.0 `Alphabet.from_architecture("ESM-1b")`, the same as the published
`vocab.txt` of facebook/esm2_*.
"""

import tempfile
from pathlib import Path

import numpy as np

TOKENS = (
    "<cls>", "<pad>", "<eos>", "<unk>",
    "L", "A", "G", "V", "S", "E", "R", "T", "I", "D", "P", "K", "Q", "N", "F", "Y", "M", "H", "W", "C",
    "X", "B", "U", "Z", "O", ".", "-",
    "<null_1>", "<mask>",
)  # fmt: skip
CLS, PAD, EOS, UNK, MASK = (TOKENS.index(f"<{name}>") for name in ("cls", "pad", "eos", "unk", "mask"))
AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"
AMINO_ACID_IDS = range(TOKENS.index("L"), TOKENS.index("C") + 1)


def _byte_table() -> np.ndarray:
    table = np.full(256, UNK, dtype=np.uint8)
    for index, token in enumerate(TOKENS):
        if len(token) == 1:
            table[ord(token)] = index
            table[ord(token.lower())] = index  # lower case is soft masking, not another residue
    return table


BYTE_TO_TOKEN = _byte_table()
"""uint8[256]: token id of each byte of a sequence; `<unk>` for all that is not in the alphabet (J too)."""


def encode(sequence: bytes) -> np.ndarray:
    """`<cls>` + residues + `<eos>` of one sequence, uint8[len + 2]."""
    ids = np.empty(len(sequence) + 2, dtype=np.uint8)
    ids[0], ids[-1] = CLS, EOS
    ids[1:-1] = BYTE_TO_TOKEN[np.frombuffer(sequence, dtype=np.uint8)]
    return ids


def build_tokenizer():
    """The `transformers.EsmTokenizer` of this alphabet; `save_pretrained` puts it beside a model."""
    from transformers import EsmTokenizer  # slow to import, and the data path does without

    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(TOKENS))
        return EsmTokenizer(str(vocabulary), model_max_length=1026)
