"""FSDP2: on CPU processes too, and a line that says whether parameters are really sharded."""

import os
from dataclasses import dataclass, replace
from functools import wraps

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM
from esm2_hyperpod.esm.parallel import divide_weights
from esm2_hyperpod.pretraining.deferred import Weights, fill

KEEP_WHOLE_BYTES = 1e9
"""Unsharded fp32 gradients up to this size may wait for the last micro-batch: 150M has 0.6 GB."""


def is_fsdp_run() -> bool:
    """Whether `accelerate launch` was given an FSDP configuration."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def starts_lean(args: TrainingArguments) -> bool:
    """Whether the model is sharded before it has memory.

    Not with one process, nor where accelerate_fsdp.yaml offloads parameters, which accelerate itself places.
    """
    offloads = os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true"
    return is_fsdp_run() and args.world_size > 1 and not offloads


def enable_fsdp_on_cpu() -> None:
    """Let `accelerate launch` with an FSDP configuration shard on CPU as it does on GPUs.

    accelerate 1.15 reads the FSDP settings for GPU-like devices alone; CPU processes silently become
    plain DDP, and a laptop or a test would then not run what the cluster runs. FSDP2 itself works over
    gloo, so the state is corrected after accelerate has made it. Ends when accelerate takes an FSDP plugin on
    CPU processes.
    """
    if not is_fsdp_run():
        return
    original = AcceleratorState.__init__

    @wraps(original)
    def __init__(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = __init__


@dataclass
class Shards:
    """What a model that has no memory yet is to become.

    Attributes:
        mesh: all processes by (`dp_replicate`, `dp_shard`, `tp`).
        weights: to fill it with.
        reshard_after_forward: None for what accelerate_fsdp.yaml says.
    """

    mesh: DeviceMesh
    weights: Weights
    reshard_after_forward: bool | None = None

    @property
    def replicas(self) -> int:
        """Copies of the model, each sharded over processes of its own."""
        return self.mesh["dp_replicate"].size()


def shard(accelerator: Accelerator, model: PreTrainedModel, shards: Shards, fill_in: bool) -> None:
    """Divide a model that is on the meta device, give this process's part memory, and fill it.

    With torch's own `fully_shard`: accelerate (1.15) shards in `prepare`, where the optimizer would have to
    know parameters by addresses that they do not have yet, and it knows tensor parallel of transformers' own
    models alone. A model that is sharded already it takes as it is. Its own way to spare memory,
    `cpu_ram_efficient_loading`, has the whole model on rank 0 and fails on ESM's rotary frequencies.

    Args:
        fill_in: False where a checkpoint is about to be loaded into the shards.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    mesh, plugin = shards.mesh, accelerator.state.fsdp_plugin
    plugin.set_auto_wrap_policy(model)  # `prepare` would, and not find the layers once they are sharded
    if mesh["tp"].size() > 1:
        divide_weights(model, mesh["tp"])
    dimensions = ("dp_replicate", "dp_shard") if shards.replicas > 1 else ("dp_shard",)
    how = {"mesh": mesh[dimensions], "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy()}
    reshard = shards.reshard_after_forward
    reshard = plugin.reshard_after_forward if reshard is None else reshard
    for layer in model.esm.encoder.layer:
        fully_shard(layer, reshard_after_forward=reshard, **how)
    fully_shard(model, **how)
    model.to_empty(device=accelerator.device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    if fill_in:
        fill(model, shards.weights)


def reduce_each_micro_batch(args: TrainingArguments, parameters: int) -> None:
    """Have FSDP2 shard the gradients of each micro-batch, where whole ones would fill the GPU.

    Between the micro-batches of a step Trainer defers the reduction (`no_sync`), and FSDP2 then keeps all
    gradients unsharded, in fp32, on every rank: 2.6 GB at 650M, 11 GB at 3B, 60 GB at 15B. To reduce each
    costs a reduce-scatter a micro-batch, which overlaps with the backward pass; smaller models defer it.
    To be called before the Trainer is made.
    """
    if is_fsdp_run() and 4 * parameters > KEEP_WHOLE_BYTES:
        args.accelerator_config.gradient_accumulation_kwargs = {"sync_each_batch": True}


def keep_fp32_where_it_matters(accelerator: Accelerator, model: PreTrainedModel) -> None:
    """Have FSDP2 in bf16 compute and sum what DDP does. Before training.

    accelerate's policy for bf16 rounds each rank's gradients to bf16 before they are summed, and what goes
    into a layer and comes out of it as well; a packed model keeps its residual stream in fp32.
    """
    if accelerator.is_fsdp2 and accelerator.mixed_precision == "bf16":
        plugin = accelerator.state.fsdp_plugin
        policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
        if isinstance(model, PackedEsmForMaskedLM):
            policy = replace(policy, cast_forward_inputs=False, output_dtype=None)
        plugin.mixed_precision_policy = policy


class SaySharding(TrainerCallback):
    """Prints, when training begins, how the parameters lie on the processes."""

    def on_train_begin(self, args, state, control, model=None, **_):
        """Print `describe_sharding` on rank 0."""
        if state.is_world_process_zero:
            print(describe_sharding(model, args.world_size), flush=True)


def describe_sharding(model: torch.nn.Module, processes: int) -> str:
    """How the parameters lie on the processes, read off the parameters themselves."""
    sharded = {name: p for name, p in model.named_parameters() if isinstance(p, DTensor)}
    if not sharded:
        return "DDP: each process holds all parameters" if processes > 1 else "one process"
    name, parameter = max(sharded.items(), key=lambda item: item[1].numel())
    mesh = parameter.device_mesh
    ways = dict(zip(mesh.mesh_dim_names or (), mesh.shape))  # accelerate's mesh, of one process, has no names
    shards = ways.get("dp_shard", mesh.size())
    line = f"FSDP2: {len(sharded)} parameters sharded over {shards} processes"
    if ways.get("tp", 1) > 1:
        line += f", their rows or columns over {ways['tp']} (tensor parallel)"
    if ways.get("dp_replicate", 1) > 1:
        line += f", in {ways['dp_replicate']} replicas"
    return f"{line}; {name} is {list(parameter.to_local().shape)} here of {list(parameter.shape)}"
