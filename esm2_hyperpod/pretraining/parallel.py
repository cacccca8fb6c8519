"""How the processes of a run divide its work: replicas, shards, and the processes that share a pack.

A process's rank counts, fastest first: tensor parallel, context parallel, data. So what sends most stays
within a node, and a replica is a row of neighbours.
"""

import os

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import EsmConfig

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm.parallel import Parallel
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.pretraining.memory import MARGIN, ROOMY, Strategy, memory
from esm2_hyperpod.pretraining.sharding import is_fsdp_run, starts_lean
from esm2_hyperpod.sizes import Size


def check_heads(args: PretrainingArguments, heads: int) -> None:
    """Refuse a division of the attention heads that does not come out even."""
    if heads % args.parts:
        fitting = ", ".join(str(parts) for parts in range(2, 9) if heads % parts == 0)
        raise UserError(
            f"--tp_size {args.tp_size} --cp_size {args.cp_size}: the model's {heads} attention heads do not "
            f"divide by {args.parts}; products that fit: {fitting}"
        )


def choose_replicas_and_checkpointing(args: PretrainingArguments, config: EsmConfig) -> tuple[int, bool]:
    """What `--dp_replicate_size auto` and `--activation_checkpointing` by default stand for.

    A replica a node, where a node's GPUs hold the model: FSDP2 then gathers weights within the node, and
    gradients alone go over the network, once a step. Activations are recomputed where they do not all fit. By
    the formula of `memory`, which knows packs in bf16 on GPUs; elsewhere everything is taken to fit.
    """
    size = Size.from_config(config.to_dict())
    local = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    nodes = args.world_size // local
    by_node = nodes > 1 and local > args.parts and local % args.parts == 0 and starts_lean(args)
    replicas = [nodes, 1] if by_node else [1]
    if args.dp_replicate_size != "auto":
        replicas = [int(args.dp_replicate_size)]
    checkpointing = [False, True] if args.checkpoints_by_memory else [args.activation_checkpointing]
    if args.device.type != "cuda" or not args.packing:
        return replicas[0], checkpointing[0]
    name = "fsdp" if is_fsdp_run() else "ddp"
    total = torch.cuda.get_device_properties(args.device).total_memory
    how = {"tp": args.tp_size, "cp": args.cp_size, "reshard": args.reshard_after_forward is not False}
    for recompute in checkpointing:
        for count in replicas:
            strategy = Strategy(
                name, args.world_size, recompute, args.compile_layers, count, muon=bool(args.muon), **how
            )
            parts = memory(size, strategy, args.tokens_per_device, args.gradient_accumulation_steps)
            if not args.bf16:
                parts["activations"] *= 2
            if sum(parts.values()) <= (MARGIN if count == 1 else ROOMY) * total:
                return count, recompute
    return replicas[-1], checkpointing[-1]


def pack_meshes(args: PretrainingArguments, tensor: DeviceMesh | None) -> Parallel:
    """The processes that share packs with this one. Called on all ranks."""
    context = None
    if args.cp_size > 1:
        shape = (args.data_ranks, args.cp_size, args.tp_size)
        context = init_device_mesh(args.device.type, shape, mesh_dim_names=("data", "cp", "tp"))["cp"]
    return Parallel(tensor, context)


def sharding_mesh(args: PretrainingArguments, replicas: int) -> DeviceMesh:
    """All processes by (`dp_replicate`, `dp_shard`, `tp`). Called on all ranks."""
    shape = (replicas, args.world_size // (replicas * args.tp_size), args.tp_size)
    return init_device_mesh(args.device.type, shape, mesh_dim_names=("dp_replicate", "dp_shard", "tp"))
