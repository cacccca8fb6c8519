"""How the scripts that use a model start and end: flags, processes, and what their output is made of."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import PartialState

from esm2_hyperpod import command_line
from esm2_hyperpod.artifacts import check_same_options, only_writer, remove_temporaries
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.proteins.records import Record, read_records, refuse_nucleotides
from esm2_hyperpod.streaming.batches import BATCH_TOKENS
from esm2_hyperpod.streaming.resumable import ResumableFile
from esm2_hyperpod.training.script import leave
from esm2_hyperpod.training.stopping import StopRequests, end_with_launcher
from esm2_hyperpod.training.throughput import device_name


class Parser(command_line.Parser):
    """A parser with the flags of all these scripts."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawTextHelpFormatter)
        self.add_argument(
            "--model_name_or_path", required=True, help="a final_model/ folder, or facebook/esm2_*"
        )
        self.add_argument("--output_dir", type=Path, required=True, help="where everything goes")
        self.add_argument(
            "--max_length",
            type=self.tokens,
            default=1024,
            help="window in tokens, <cls> and <eos> included; a longer protein is read in\n"
            "windows that overlap by half; default: 1024, as ESM-2 was trained",
        )
        self.add_argument(
            "--precision",
            choices=("fp32", "bf16"),
            default="fp32",
            help="bf16 is several times as fast on a GPU, and differs in the third digit; default: fp32",
        )
        self.add_argument(
            "--allow_nucleotides", action="store_true", help="take DNA and RNA, which are refused otherwise"
        )

    def add_proteins(self) -> None:
        """--fasta or --sequence."""
        given = self.add_mutually_exclusive_group(required=True)
        given.add_argument("--fasta", type=Path, help="proteins as FASTA (.gz too)")
        given.add_argument("--sequence", help="or one protein by itself")

    @staticmethod
    def tokens(text: str) -> int:
        """The type of --max_length."""
        value = int(text)
        if value < 4:
            raise argparse.ArgumentTypeError("must be 4 or more: <cls>, <eos> and some residues")
        return value


class Session:
    """One start of a script, on all its processes.

    Attributes:
        device: where this process computes.
        is_main: whether it is the one that writes and speaks.
    """

    def __init__(self, args: argparse.Namespace):
        self._state = PartialState(cpu=not torch.cuda.is_available())
        self.device, self.is_main = self._state.device, self._state.is_main_process
        self._stop = StopRequests(args.output_dir)
        self._stop.listen()

    def say(self, *lines: str) -> None:
        """Print, once for all processes."""
        if self.is_main:
            print("\n".join(lines), flush=True)

    def stop_asked(self) -> bool:
        """Whether this process was asked to end soon."""
        return self._stop.reason is not None

    def leave(self) -> int:
        """Say that the run was stopped early; returns the exit code for it."""
        return leave(self._stop, "what is done is kept")

    def describe(self, model: torch.nn.Module, args: argparse.Namespace) -> None:
        """Say what computes what."""
        count, processes = torch.cuda.device_count(), self._state.num_processes
        unused = f" of {count}; all of them: torchrun --nproc_per_node {count} ..." if count > 1 else ""
        self.say(
            f"{args.model_name_or_path}: {model.config.num_hidden_layers} layers x "
            f"{model.config.hidden_size}, {args.precision}; {processes} process(es) on "
            f"{device_name(self.device)}{unused if processes == 1 else ''}"
        )


def on_all_ranks(args: argparse.Namespace, work: Callable[[Session], int | None]) -> int | None:
    """Do `work` as the only one that writes to `--output_dir`, then leave the process group."""
    end_with_launcher()
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise UserError(f"--output_dir {args.output_dir}: a file; give a folder")
    session = Session(args)
    with only_writer(args.output_dir) if session.is_main else nullcontext():
        if session.is_main:
            remove_temporaries(args.output_dir)
        exit_code = work(session)
    PartialState().destroy_process_group()
    return exit_code


def records_of(args: argparse.Namespace) -> Iterator[Record]:
    """The proteins of --fasta or --sequence, one at a time.

    Raises `UserError` if there is no such file, or it holds DNA or RNA and --allow_nucleotides is not given.
    """
    if args.fasta is not None and not args.fasta.is_file():
        raise UserError(f"--fasta {args.fasta}: no such file; give the proteins as FASTA (.gz too)")

    def records() -> Iterator[Record]:
        return (
            iter([Record("sequence", args.sequence, 1)]) if args.fasta is None else read_records(args.fasta)
        )

    if not args.allow_nucleotides:
        source = "--sequence" if args.fasta is None else f"--fasta {args.fasta}"
        anyway = ", or take them as they are with --allow_nucleotides"
        refuse_nucleotides((record.sequence for record in records()), source, anyway)
    return records()


def is_done(file: ResumableFile) -> bool:
    """Whether the file is there already. Raises `UserError` if there is one of something else."""
    if file.is_current():
        return True
    if file.output.is_file() and file.facts.is_file():
        recorded, folder = json.loads(file.facts.read_text(encoding="utf-8")), file.output.parent
        check_same_options(folder, recorded, file.made_of, f"rm -r {folder}", defaults={})
    return False


def made_of(args: argparse.Namespace, *names: str) -> dict:
    """What an output depends on: proteins, model, and the flags of these names."""
    proteins = {"sequence": args.sequence} if args.fasta is None else {"fasta": file_facts(args.fasta)}
    flags = {name: getattr(args, name) for name in ("max_length", "precision", *names)}
    return {**proteins, "model": model_facts(args.model_name_or_path), **flags}


def chunk_tokens(device: torch.device) -> int:
    """Tokens to compute between two times that results reach the disk: a minute's, or less."""
    return 64 * BATCH_TOKENS[device.type]


def file_facts(path: Path) -> dict:
    """What changes when a file does."""
    facts = path.stat()
    return {"path": str(path.resolve()), "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}


def model_facts(name: str) -> dict | str:
    """What changes when a model does; a name of the hub is its own."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
