"""What the tests share: the environment, the optional real data, and data made once."""

import os
import tempfile
from pathlib import Path

import pytest
from helpers.commands import REAL_DATA, run
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may depend on a network
# Tiny models gain nothing from threads, which lose much to each other where the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# An ATen held to an older processor still asks oneDNN, which packs bf16 as this one would, and still finds
# what was compiled for this one; both fail.
capability = os.environ.get("ATEN_CPU_CAPABILITY")
if capability in ("default", "avx2"):
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor-{capability}")

settings.register_profile("any machine", deadline=None)  # it may be busy
settings.load_profile("any machine")

# Each file is run by one worker from beginning to end. The longest begin first, so that both end together.
LONGEST = "quickstart survival processes layouts command local_slurm moto".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were."""
    rank = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes name no test: a gzip holds the time, so each worker would collect a test of another name."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _own_tensorboard():
    """The folder for TensorBoard, which train.py's flags put into the environment, is no other test's."""
    yield
    os.environ.pop("TENSORBOARD_LOGGING_DIR", None)


@pytest.fixture
def real_data() -> Path:
    """The folder of real sequences and labels; the test is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real sequences are not at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A random ESM-2 of two layers, the base of fine-tuning."""
    from helpers.localization_example import write_base  # torch, which most tests do without

    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    return folder


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    """Steps 0 and 1 on 600 synthetic records: a folder with csv/ and processed/arrow/."""
    folder = tmp_path_factory.mktemp("synthetic")
    csv, arrow = folder / "csv", folder / "processed" / "arrow"
    records = "--source synthetic --max_records 600 --num_partitions 4".split()
    run("0.download_data.py", *records, "--output_dir", csv)
    run("1.tokenize_uniref_csv.py", "--input_dir", csv, "--output_dir", arrow)
    return folder


@pytest.fixture(scope="session")
def tokenized(synthetic) -> Path:
    """The tokenized splits of `synthetic`."""
    return synthetic / "processed" / "arrow"


@pytest.fixture(scope="session")
def undisturbed(tokenized, tmp_path_factory) -> Path:
    """A pretraining of one process from beginning to end."""
    from helpers.pretraining import train

    output = tmp_path_factory.mktemp("undisturbed")
    train(tokenized, output)
    return output
