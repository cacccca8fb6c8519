"""What step 1 says of its data near its end, and draws."""

from helpers.proteins import write_fasta
from helpers.steps import step_0, step_1


def test_lengths_residues_and_what_is_cut_are_said_and_drawn(tmp_path):
    proteins = {f"p{number}": "A" * 3 + "L" for number in range(6)}
    proteins |= {"q1": "L" * 200, "q2": "AL" * 300, "q3": "L" * 2047, "q4": "L" * 3000}
    write_fasta(tmp_path / "a.fasta", proteins)
    step_0(tmp_path / "a.fasta", tmp_path / "csv", "--num_partitions", 2, "--plot")
    assert (tmp_path / "csv" / "data.png").read_bytes().startswith(b"\x89PNG")
    flags = ["--min_length", 5, "--validation_size", 0, "--test_size", 0]
    lines = step_1(tmp_path / "csv", tmp_path / "arrow", *flags, "--plot").stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("residues:"))
    names, shares = (line.split()[1:] for line in lines[at : at + 2])
    assert dict(zip(names, shares)) == {
        "0-127": "0.0%", "128-255": "25.0%", "256-511": "0.0%", "512-1023": "25.0%", "1024-2047": "25.0%",
        "2048-": "25.0%",
    }  # fmt: skip
    assert lines[at + 2].startswith("residue frequencies, %: L 94.9  A 5.1  G 0.0")
    assert lines[at + 3] == "2 proteins (50.0%) are longer than 1,022 residues: cropped at random in training"
    assert lines[at + 4] == "6 records were too short and left out"
    assert (tmp_path / "arrow" / "data.png").is_file()
