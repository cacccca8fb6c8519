"""README.md of `final_model/`: what the model is, what it was trained on and how well it does."""

from typing import Any

from esm2_hyperpod.pretraining.arguments import PretrainingArguments

UNIPROT_LICENCE = (
    "UniProt's sequences, UniRef among them, are under CC BY 4.0 (uniprot.org/help/license): name UniProt."
)


def model_card(
    args: PretrainingArguments,
    manifest: dict[str, Any],
    parameters: int,
    steps: int,
    weights_of: int,
    metrics: dict[str, float],
) -> str:
    """The text.

    Args:
        manifest: that of the dataset.
        parameters: of the model.
        steps: that it was trained for.
        weights_of: the step that its weights are of.
        metrics: of the evaluation of these; empty where there was none.
    """
    model = args.model_name_or_path or args.config_name or args.model_size
    start = "continued from" if args.model_name_or_path else "from scratch, of size"
    data = "synthetic proteins" if manifest["synthetic"] else "protein sequences"
    optimizer = "Muon for the layers' matrices, AdamW for the rest" if args.muon else args.optim.value
    rows = {
        "trained": f"{start} {model}, {parameters:,} parameters, {steps:,} steps of "
        f"{args.global_batch_tokens:,} tokens",
        "weights": f"of step {weights_of:,}"
        + (", the last" if weights_of == steps else ", the lowest validation loss of the run"),
        "data": f"{manifest['splits']['train']['records']:,} {data}, content digest "
        f"`{manifest['content_digest']}`",
        "objective": f"masked language modelling, {args.mlm_probability:.0%} of the tokens, up to "
        f"{args.max_seq_length:,} tokens a sequence",
        "recipe": f"{optimizer}, peak learning rate {args.learning_rate:g}, schedule {args.lr_schedule}, "
        f"{args.warmup_steps:,.0f} steps of warm-up, weight decay {args.weight_decay:g}, seed {args.seed}",
    }
    if metrics:
        rows["validation"] = (
            f"loss {metrics['eval_loss']:.4f} nats, perplexity {metrics['eval_perplexity']:.3f}, accuracy "
            f"{metrics['eval_accuracy']:.4f}, over {metrics['eval_masked_tokens']:,.0f} masked tokens"
        )
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [esm, protein]
---

# ESM-2, {model}

| | |
|---|---|
{table}

```python
from transformers import pipeline

pipeline("fill-mask", model="FOLDER")("MKT<mask>LLA")
```

{"" if manifest["synthetic"] else UNIPROT_LICENCE}
"""
